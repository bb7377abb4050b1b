"""The share of causal attention's pairs that a pattern lets through."""

from __future__ import annotations

from functools import lru_cache

import torch

from hf_longctx.patterns.base import Pattern
from hf_longctx.patterns.combine import Heads
from hf_longctx.patterns.full import Full

#: Pairs up to which a pattern that only has a rule is counted pair by pair, which takes about a second.
_EXACT = 1 << 25


@lru_cache(maxsize=256)
def visible_share(pattern: Pattern, n: int) -> float | None:
    """Visible pairs of `n` tokens over those of full causal attention.

    Args:
        pattern: the pattern; of `Heads` the mean over its entries, of another one that differs by head (`Random`) the
            first head of the first layer.
        n: tokens, at least 1.

    Returns:
        From 0 to 1; None where only the rule is known and the pairs are too many to try each.

    >>> from hf_longctx.patterns import parse
    >>> round(visible_share(parse("window:1024+global:4"), 32768), 4), visible_share(parse("heads(full|block:1)"), 3)
    (0.0618, 0.75)
    """
    if isinstance(pattern, Heads):
        shares = [visible_share(entry, n) for entry in pattern.entries]
        known = [share for share in shares if share is not None]
        return sum(known) / len(known) if len(known) == len(shares) else None
    counted = type(pattern).count is not Pattern.count or pattern.rows(torch.arange(1)) is not None
    return pattern.count(n) / Full().count(n) if counted or n * n <= _EXACT else None


def percent(share: float | None) -> str:
    """A share for people.

    >>> percent(0.4375), percent(0.0001), percent(None)
    ('44%', '0.01%', '-')
    """
    return "-" if share is None else f"{share:.0%}" if share >= 0.1 else f"{100 * share:.2g}%"
