"""Positional skip-wise training (PoSE): positions of a long window, learned from short sequences.

Zhu et al. 2023, arXiv 2309.10400, section 3: a sequence is cut into chunks, and the positions of each chunk after the
first are moved on by a skip, so that over many sequences every position and every distance of the long window occurs.
Tokens stay neighbours; only what RoPE is told changes. The attention engine sees a jump forward as no new document;
transformers' own packing detection takes it for one, so position skipping runs on the engine.
"""

from __future__ import annotations

import random


def skip_positions(length: int, window: int, rng: random.Random, *, chunks: int = 2) -> list[int]:
    """Draw positions for one sequence.

    Cuts are drawn without replacement, and each chunk's skip evenly from what the one before it left of
    `window - length`, as in the paper's section 3.2 (skips u_0 = 0, u_i from u_{i-1} to L_t - L_c).

    Args:
        length: tokens of the sequence, L_c in the paper.
        window: the window to be learned, L_t; at least `length`.
        rng: source of randomness; the only one.
        chunks: pieces that a sequence is cut into, at least 2; fewer where it is too short.

    Returns:
        Ascending positions, `length` of them, from 0 to at most `window - 1`.

    Raises:
        ValueError: a window shorter than the sequence, or fewer than 2 chunks.

    >>> skip_positions(8, 100, random.Random(3))
    [0, 1, 77, 78, 79, 80, 81, 82]
    """
    if window < length:
        raise ValueError(f"window is {window}, which {length} tokens do not fit into: give at least {length}")
    if chunks < 2:
        raise ValueError(f"chunks is {chunks}: position skipping cuts a sequence into at least 2 chunks")
    cuts = sorted(rng.sample(range(1, length), min(chunks, length) - 1)) if length > 1 else []
    positions: list[int] = []
    skip = 0
    for start, stop in zip([0, *cuts], [*cuts, length]):
        if start:
            skip = rng.randint(skip, window - length)
        positions.extend(range(start + skip, stop + skip))
    return positions
