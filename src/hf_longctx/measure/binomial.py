"""Exact chances of a count of hits: what an interval by formula promises only roughly when there are few."""

from __future__ import annotations

import math


def at_least(hits: int, n: int, share: float) -> float:
    """The chance of so many hits or more, each of n probes being one with the chance `share` (the binomial's tail).

    Args:
        hits: from 0 to n.
        n: probes.
        share: strictly between 0 and 1.

    Returns:
        From 0 to 1. That of at most so many hits is ``at_least(n - hits, n, 1 - share)``.

    >>> [round(at_least(*asked), 3) for asked in [(1, 2, 0.5), (23, 23, 0.856), (1, 1, 1 - 0.856)]]
    [0.75, 0.028, 0.144]
    """
    if hits <= 0:
        return 1.0
    # In logarithms, since the number of ways outgrows a float from about 1000 probes on.
    hit, miss, ways = math.log(share), math.log1p(-share), math.lgamma(n + 1)
    return min(
        1.0,
        math.fsum(
            math.exp(ways - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * hit + (n - k) * miss)
            for k in range(hits, n + 1)
        ),
    )
