"""Two variants on the same prompts: is the difference more than chance?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact McNemar test (McNemar 1947, Psychometrika 12; the binomial form).

    Prompts on which both hit or both miss say nothing about a difference. Of the others, half would fall to each
    variant if there were none.

    Args:
        only_first: prompts that the first variant alone got right.
        only_second: prompts that the second alone got right.

    Returns:
        The two-sided p-value; 1 without a prompt on which they differ.

    Raises:
        ValueError: for a negative count.

    >>> mcnemar(6, 0), mcnemar(3, 3), mcnemar(0, 0)
    (0.03125, 1.0, 1.0)
    """
    if only_first < 0 or only_second < 0:
        raise ValueError(f"counts are {only_first} and {only_second}: they must be at least 0")
    n = only_first + only_second
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1)) / 2**n
    return min(1.0, 2 * tail)


def bootstrap_difference(
    differences: Sequence[float], *, confidence: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """The mean difference between two variants with a bootstrap interval over seeds (Efron 1979, Ann. Statist. 7).

    Args:
        differences: one a seed: the mean score of one variant less that of the other on the same prompts.
        confidence: coverage of the percentile interval.
        draws: resamples.
        seed: of the resampling.

    Returns:
        (mean, low, high). With fewer than two seeds nothing is known of the spread: (mean, -1, 1).

    Raises:
        ValueError: without differences.

    >>> bootstrap_difference([0.5, 0.5, 0.5])
    (0.5, 0.5, 0.5)
    """
    if not len(differences):
        raise ValueError("differences is empty: at least one seed that both variants have answered is needed")
    given = np.asarray(differences, dtype=np.float64)
    if len(given) < 2:
        return float(given[0]), -1.0, 1.0
    return bootstrap_mean(given, confidence=confidence, draws=draws, seed=seed)


def bootstrap_mean(
    values: npt.ArrayLike, *, confidence: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """A mean over seeds with its percentile bootstrap interval, which is narrow where seeds are few.

    Args:
        values: (n,) one a seed, at least one.
        confidence: coverage of the interval.
        draws: resamples.
        seed: of the resampling.

    Returns:
        (mean, low, high).

    >>> bootstrap_mean([0.5, 0.5, 0.5])
    (0.5, 0.5, 0.5)
    """
    given = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = given[rng.integers(0, len(given), (draws, len(given)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(given.mean()), float(low), float(high)
