"""Wavelengths of the rotary pairs before and after a scaling: what the `rope` command shows."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hf_longctx.rope.base import Scaling, default_inv_freq


@dataclass(frozen=True)
class Wavelength:
    """One rotary pair before and after a scaling.

    Attributes:
        pair: Index i of the pair, 0 the fastest.
        before: Tokens in a full turn before.
        after: Tokens in a full turn after.
        ratio: after / before, the stretch of this pair.
        turns_before: Turns over the trained window before; below 1 the model has not seen every angle.
        turns_after: The same after.
    """

    pair: int
    before: float
    after: float
    ratio: float
    turns_before: float
    turns_after: float


def wavelengths(
    before: Scaling, after: Scaling, dim: int, base: float, trained: int, length: int | None = None
) -> list[Wavelength]:
    """Compare two scalings pair by pair.

    Args:
        before: The scaling that the model has, `NoScaling()` for none.
        after: The scaling to look at.
        dim: Rotary dimension of a head.
        base: The unscaled `rope_theta`.
        trained: Length the model was trained on, in tokens.
        length: Length of the sequence at hand, for methods that follow it; None stands for `trained`.

    Returns:
        One entry for each of the dim/2 pairs, fastest first.

    Raises:
        TypeError: As `Scaling.inv_freq`.
        ValueError: As `Scaling.inv_freq`.

    >>> from hf_longctx.rope import Linear, NoScaling
    >>> [round(pair.ratio, 6) for pair in wavelengths(NoScaling(), Linear(2), 4, 100.0, 1024)]
    [2.0, 2.0]
    """
    olds = (2 * math.pi / before.inv_freq(dim, base, trained, length)).tolist()
    news = (2 * math.pi / after.inv_freq(dim, base, trained, length)).tolist()
    return [
        Wavelength(pair, old, new, new / old, trained / old, trained / new)
        for pair, (old, new) in enumerate(zip(olds, news, strict=True))
    ]


def unseen(scaling: Scaling, dim: int, base: float, trained: int, window: int) -> list[int]:
    """List the pairs that meet angles within `window` which no training position had.

    A pair that makes a full turn within the trained length has seen every angle. A slower one has seen a part of the
    circle, and leaves it where its angle at the end of the window passes that of plain RoPE at the trained length.

    Args:
        scaling: The scaling in use.
        dim: Rotary dimension of a head.
        base: The unscaled `rope_theta`.
        trained: Length the model was trained on, in tokens.
        window: Length to be used, in tokens.

    Returns:
        Their indices, ascending.

    Raises:
        TypeError: As `Scaling.inv_freq`.
        ValueError: As `Scaling.inv_freq`.

    >>> from hf_longctx.rope import Linear, NoScaling
    >>> len(unseen(NoScaling(), 64, 10000.0, 4096, 8192)), len(unseen(Linear(2), 64, 10000.0, 4096, 8192))
    (9, 0)
    """
    seen = trained * default_inv_freq(dim, base)
    reached = window * scaling.inv_freq(dim, base, trained, window)
    # The margin keeps a pair that ends exactly where training ended (linear at its own factor) from counting.
    leaves = (seen < 2 * math.pi) & (reached > seen * (1 + 1e-9))
    return leaves.nonzero().flatten().tolist()
