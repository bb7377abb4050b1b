"""Sequential tests of a mean score: look after every trial, stop as soon as it is decided, and stay right.

A bettor starts with 1 and bets, trial by trial, that the mean is above a threshold. Where it is not, the capital is a
non-negative supermartingale, and the chance that it ever reaches 1/alpha is at most alpha (Ville 1939). So the test
may stop whenever it likes: Wald's sequential probability ratio test (Ann. Math. Statist. 16, 1945) without the need
to name an alternative, and for any score from 0 to 1, not hits alone (Waudby-Smith and Ramdas, "Estimating means of
bounded random variables by betting", JRSS B 86, 2024, section 4). The size of the bet is mixed over a grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

_BETS = np.arange(1, 17) / 16
"""Share of the largest bet that cannot lead into debt; the capital is the mean over these bettors."""

_STEPS = 40
"""Halvings when a bound is searched for: finer than any number of trials can tell."""


def log_capital(scores: Sequence[float], threshold: float, *, above: bool) -> npt.NDArray[np.float64]:
    """The logarithm of the capital after each trial of a bettor against "the mean is not above (below)".

    A bettor with share c of the largest bet multiplies his capital by ``1 - c + c x / m`` when he bets on a mean
    above m and sees x, and by ``1 - c + c (1 - x) / (1 - m)`` when he bets on one below.

    Args:
        scores: (n,) scores from 0 to 1, in the order they came.
        threshold: m, strictly between 0 and 1.
        above: which side is bet on.

    Returns:
        (n,) float64; at least 1 / alpha anywhere shows the bet's side at level alpha.

    Raises:
        ValueError: for a threshold or a score out of range.

    >>> [round(float(one), 2) for one in np.exp(log_capital([1, 1, 0], 0.5, above=True))]
    [1.53, 2.43, 0.88]
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold={threshold!r}: it must be between 0 and 1, both excluded")
    x = np.asarray(scores, dtype=np.float64).reshape(-1, 1)
    if x.size and not (x.min() >= 0 and x.max() <= 1):
        raise ValueError(f"scores range from {x.min()} to {x.max()}: they must be from 0 to 1")
    gain = x / threshold if above else (1 - x) / (1 - threshold)
    with np.errstate(divide="ignore"):
        each = np.cumsum(np.log(1 - _BETS + _BETS * gain), axis=0)
    top = each.max(axis=1, keepdims=True, initial=-np.inf)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(each - top).mean(axis=1)) + top[:, 0]


def decide(scores: Sequence[float], threshold: float, *, pass_level: float, fail_level: float) -> str:
    """Which side of a threshold the mean is shown to be on.

    Args:
        scores: from 0 to 1, in the order they came.
        threshold: strictly between 0 and 1.
        pass_level: chance of a wrong pass, however often one looks.
        fail_level: chance of a wrong fail.

    Returns:
        `pass`, `fail` or `open`: whichever line was crossed first.

    >>> decide([1.0] * 28, 0.856, pass_level=0.05, fail_level=0.05)
    'pass'
    >>> decide([0.0] * 3, 0.856, pass_level=0.05, fail_level=0.05)
    'fail'
    >>> decide([1.0] * 10, 0.856, pass_level=0.05, fail_level=0.05)
    'open'
    """
    return _decide(tuple(scores), threshold, pass_level, fail_level)


@lru_cache(maxsize=1024)
def _decide(scores: tuple[float, ...], threshold: float, pass_level: float, fail_level: float) -> str:
    """Kept, since a climb asks again about every length below the one it is at."""
    passed = _first(log_capital(scores, threshold, above=True), pass_level)
    failed = _first(log_capital(scores, threshold, above=False), fail_level)
    if passed == failed:
        return "open"
    return "pass" if passed < failed else "fail"


def interval(scores: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """A confidence interval of the mean that holds at every number of trials at once (a confidence sequence).

    Args:
        scores: from 0 to 1, in the order they came.
        confidence: coverage, over all looks together.

    Returns:
        (low, high); (0, 1) without scores.

    >>> low, high = interval([1.0] * 30)
    >>> round(low, 2), high
    (0.84, 1.0)
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence!r}: it must be between 0 and 1, such as 0.95")
    if not len(scores):
        return 0.0, 1.0
    level = (1 - confidence) / 2

    def beyond(threshold: float, *, above: bool) -> bool:
        return _first(log_capital(scores, threshold, above=above), level) < len(scores)

    return _bound(lambda m: beyond(m, above=True)), 1 - _bound(lambda m: beyond(1 - m, above=False))


def _first(capital: npt.NDArray[np.float64], level: float) -> int:
    """Index of the first trial after which the line was crossed; their number if it never was."""
    crossed = np.flatnonzero(capital >= -math.log(level))
    return int(crossed[0]) if crossed.size else len(capital)


def _bound(refuted: Callable[[float], bool]) -> float:
    """The largest mean that is refuted, all smaller ones being too; 0 if none is."""
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low
