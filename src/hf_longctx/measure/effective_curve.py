"""Where the curve fitted to the scores falls below a rule's line, between the lengths that were asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .effective import RULES, Climb, Scores
from .falling_curve import crossing, falling_fit


def curve_length(
    scores: Scores, climb: Climb, rule: str, *, draws: int = 400, seed: int = 0
) -> tuple[float, float, float]:
    """Where the fitted curve crosses the rule's line, with a percentile bootstrap over seeds.

    A seed is drawn with its scores at all lengths, so that what they have in common stays together. This describes
    the curve; it promises no coverage, since the trials were chosen by looking. The promise is `judge`'s.

    Args:
        scores: so far.
        climb: its first rung and confidence are used.
        rule: one of `RULES`.
        draws: resamples.
        seed: of the resampling.

    Returns:
        (estimate, low, high) in tokens; 0 below the shortest length, infinity past the longest.
    """
    lengths = [length for length in sorted(scores) if any(one is not None for one in scores[length])]
    if not lengths:
        return 0.0, 0.0, math.inf
    seeds = max(len(scores[length]) for length in lengths)
    table = np.full((len(lengths), seeds), np.nan)
    for row, length in enumerate(lengths):
        given = [np.nan if one is None else one for one in scores[length]]
        table[row, : len(given)] = given
    rng = np.random.default_rng(seed)
    samples = [np.arange(seeds), *rng.integers(0, seeds, (draws, seeds))]
    found = [one for sample in samples if (one := _crossing_of(lengths, table[:, sample], climb, rule)) is not None]
    if not found:  # the shortest length could not be asked, and the rule measures against it
        return 0.0, 0.0, math.inf
    tail = (1 - climb.confidence) / 2
    # Inverse of the empirical distribution: infinity is a value like any other.
    low, high = np.quantile(found[1:] or found, [tail, 1 - tail], method="inverted_cdf")
    return found[0], float(low), float(high)


def _crossing_of(lengths: Sequence[int], table: Any, climb: Climb, rule: str) -> float | None:
    """Crossing of a table (lengths, seeds) of scores, NaN where there is none; None without any base score."""
    counts = (~np.isnan(table)).sum(axis=1)
    kept = counts > 0
    if not kept.any():
        return None
    means = np.nansum(table[kept], axis=1) / counts[kept]
    names = [length for length, keep in zip(lengths, kept) if keep]
    threshold = RULES[rule]
    if rule == "own":
        if names[0] != climb.ladder[0]:
            return None
        threshold *= float(means[0])
    if threshold == 0.0:
        return 0.0
    return crossing(names, falling_fit(means.tolist(), counts[kept].tolist()), threshold)
