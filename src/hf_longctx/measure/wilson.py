"""The Wilson score interval of a share."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson(hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided Wilson score interval of a share (Wilson 1927, JASA 22, p. 209).

    Unlike the textbook ``p +- z*sqrt(p(1-p)/n)`` it stays inside [0, 1] and does not collapse to a point when every
    probe hits, which is the usual case at short lengths.

    Args:
        hits: Probes answered right.
        n: Probes scored. With none the interval is (0, 1): nothing is known.
        confidence: Coverage of the interval, in (0, 1).

    Returns:
        ``(low, high)``, with ``0 <= low <= hits/n <= high <= 1``.

    Raises:
        ValueError: Not ``0 <= hits <= n``, or a confidence outside (0, 1).

    Examples:
        >>> [round(bound, 3) for bound in wilson(15, 15)]
        [0.796, 1.0]
        >>> round(wilson(23, 23)[0], 4)  # the fewest straight hits whose lower bound clears 85.6%
        0.8569
        >>> wilson(0, 0)
        (0.0, 1.0)
    """
    if not 0 <= hits <= n:
        raise ValueError(f"hits={hits!r} of n={n!r}: hits must be between 0 and n; count each scored probe once")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence={confidence!r}: must be between 0 and 1, for example 0.95")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, z2 = hits / n, z * z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # The two ends are exact by algebra but not in floating point.
    low = 0.0 if hits == 0 else min(share, max(0.0, centre - half))
    high = 1.0 if hits == n else max(share, min(1.0, centre + half))
    return low, high
