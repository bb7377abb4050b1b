"""A curve that never rises through measured scores, and where it falls below a line."""

from __future__ import annotations

import math
from collections.abc import Sequence


def falling_fit(means: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The non-increasing curve nearest to means in weighted squares: pool adjacent violators.

    Args:
        means: by ascending length.
        weights: trials of each.

    Returns:
        The fitted means (Ayer et al. 1955, Ann. Math. Statist. 26).

    >>> falling_fit([0.9, 0.5, 0.7, 0.1], [1, 1, 1, 1])
    [0.9, 0.6, 0.6, 0.1]
    """
    blocks: list[list[float]] = []
    for mean, weight in zip(means, weights):
        blocks.append([mean, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            mean_b, weight_b, size_b = blocks.pop()
            mean_a, weight_a, size_a = blocks.pop()
            total = weight_a + weight_b
            blocks.append([(mean_a * weight_a + mean_b * weight_b) / total, total, size_a + size_b])
    return [mean for mean, _, size in blocks for _ in range(int(size))]


def crossing(lengths: Sequence[int], curve: Sequence[float], threshold: float) -> float:
    """Where a falling curve crosses a threshold, straight between lengths on a logarithmic scale.

    Args:
        lengths: ascending.
        curve: from `falling_fit`.
        threshold: the score to reach.

    Returns:
        A length in tokens; 0 below the shortest, infinity past the longest.

    >>> round(crossing([1024, 4096], [1.0, 0.0], 0.5)), crossing([1024], [1.0], 0.5), crossing([1024], [0.2], 0.5)
    (2048, inf, 0.0)
    """
    if not len(lengths) or curve[0] < threshold:
        return 0.0
    for (short, above), (long, below) in zip(zip(lengths, curve), zip(lengths[1:], curve[1:])):
        if below < threshold:
            share = (above - threshold) / (above - below)
            return float(math.exp(math.log(short) + share * math.log(long / short)))
    return math.inf
