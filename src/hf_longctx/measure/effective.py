"""The effective length with its uncertainty: what to test next, and what the tests so far say.

Lengths are climbed from the shortest. Each is tested trial by trial until it passes, fails, or has used up its
trials. At the first failure the gap below it is bisected. What is left is an interval: the longest length shown to
work, and the shortest shown not to. All here is a pure function of the scores.

The interval's error is shared out beforehand: half to its lower end, which is wrong only if the first bad rung or a
bad length of the bisection passes (a fixed sequence: nothing longer is believed after a rung that did not pass), and
half to its upper end, which is wrong only if some good length fails. It takes the curve to fall, never to rise.
"""

from __future__ import annotations

import bisect
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .defaults import TRIALS
from .falling_curve import crossing, falling_fit
from .heatmap import length_label
from .sequential import decide

Scores = Mapping[int, Sequence[float | None]]
"""Length to the score of each trial; None where it could not be asked. Every trial is one seed."""

RULES = {"absolute": 0.856, "own": 0.85}
"""`absolute`: RULER's bar (arXiv 2404.06654); `own`: NoLiMa's share of the model's own score at the shortest length
(arXiv 2502.05167)."""

FLOOR = 0.25
"""A model shown to score below this at its shortest length has no score to keep, and fails the rule `own`."""


@dataclass(frozen=True)
class Climb:
    """How an effective length is looked for.

    Args:
        ladder: lengths in tokens, ascending; the first is the base of the rule `own`.
        trials: most trials of a length.
        bisections: how often the gap below the first failure is halved.
        confidence: chance that the interval holds the true effective length.

    Raises:
        ValueError: for a ladder that does not ascend, or numbers out of range.
    """

    ladder: tuple[int, ...]
    trials: int = TRIALS
    bisections: int = 2
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not self.ladder or list(self.ladder) != sorted(set(self.ladder)) or self.ladder[0] < 1:
            raise ValueError(f"ladder={self.ladder}: give at least one length, ascending, none twice")
        if self.trials < 1:
            raise ValueError(f"trials={self.trials}: give at least 1")
        if self.bisections < 0:
            raise ValueError(f"bisections={self.bisections}: give at least 0")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence={self.confidence}: it must be between 0 and 1, such as 0.95")

    @property
    def pass_level(self) -> float:
        """Chance of a wrong pass in one test."""
        return (1 - self.confidence) / 2 / (1 + self.bisections)

    @property
    def fail_level(self) -> float:
        """Chance of a wrong fail in one test; the test against `FLOOR` is one of them."""
        return (1 - self.confidence) / 2 / (len(self.ladder) + self.bisections + 1)


@dataclass(frozen=True)
class Found:
    """What the tests say under one rule.

    Attributes:
        low: longest length shown to work, all rungs below it too; None if not even the shortest.
        high: shortest length shown not to work; None if none.
        verdicts: length to `pass`, `fail` or `undecided`.
        ask: (length, trial) that is wanted next, or None when all is said that the trials allow.
    """

    low: int | None
    high: int | None
    verdicts: Mapping[int, str]
    ask: tuple[int, int] | None


def judge(scores: Scores, climb: Climb, rule: str) -> Found:
    """What is known so far, and what to ask next.

    Args:
        scores: so far.
        climb: how to look.
        rule: one of `RULES`.

    Returns:
        The finding; `undecided` lengths are those whose trials are used up, or could not be asked.

    Raises:
        ValueError: for an unknown rule.

    >>> climb = Climb((1024, 2048, 4096), bisections=1)
    >>> judge({}, climb, "absolute").ask
    (1024, 0)
    >>> found = judge({1024: [1.0] * 40, 2048: [1.0] * 40, 4096: [0.0] * 9}, climb, "absolute")
    >>> found.low, found.high, found.ask
    (2048, 4096, (3072, 0))
    """
    if rule not in RULES:
        raise ValueError(f"rule={rule!r} is not a rule: choose one of {', '.join(RULES)}")
    verdicts: dict[int, str] = {}
    low: int | None = None
    high: int | None = None

    def found(ask: tuple[int, int] | None) -> Found:
        return Found(low, high, verdicts, ask)

    climbing = True
    for length in climb.ladder:
        call, ask = _test(scores, length, climb, rule)
        verdicts[length] = call
        if ask is not None:
            return found(ask)
        if call == "fail":
            high = length
            break
        # After a length that stays undecided nothing longer is believed to pass; only the upper end is looked for.
        climbing = climbing and call == "pass"
        if climbing:
            low = length
    if high is None or low is None or not climbing:
        return found(None)
    for _ in range(climb.bisections):
        middle = (low + high) // 2
        if middle in (low, high):
            break
        call, ask = _test(scores, middle, climb, rule)
        verdicts[middle] = call
        if ask is not None:
            return found(ask)
        if call == "undecided":
            break
        low, high = (middle, high) if call == "pass" else (low, middle)
    return found(None)


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


def unsettled(scores: Scores, climb: Climb, rule: str, unfit: Mapping[int, str]) -> dict[int, str]:
    """Why a length has neither passed nor failed, those of the ladder that were never reached included.

    Args:
        scores: so far.
        climb: how it was looked for.
        rule: one of `RULES`.
        unfit: length to the reason why something of it could not be asked.

    Returns:
        Length to reason, ascending; without those that passed or failed.

    >>> climb = Climb((1024, 2048, 4096), bisections=0)
    >>> scores = {1024: [1.0] * 40, 2048: [0.0] * 9}
    >>> unsettled(scores, climb, "absolute", {})
    {4096: 'not asked: 2K fails, and scores are taken to fall with length'}
    >>> unsettled({}, climb, "absolute", {})[4096]
    'not asked: the run stopped at 1K'
    >>> unsettled(scores, replace(climb, bisections=1), "absolute", {})[4096]  # it stopped at 1536
    'not asked: 2K fails, and scores are taken to fall with length'
    """
    found, base = judge(scores, climb, rule), climb.ladder[0]
    last = next((length for length, call in found.verdicts.items() if call == "open"), None)
    why: dict[int, str] = {}
    for length in sorted({*climb.ladder, *found.verdicts}):
        call, given = found.verdicts.get(length), scores.get(length, ())
        if call is None:
            if last is None or (found.high and length > found.high):
                why[length] = (
                    f"not asked: {length_label(found.high or 0)} fails, and scores are taken to fall with length"
                )
            else:
                why[length] = f"not asked: the run stopped at {length_label(last)}"
        elif call == "open":
            asked = f"{len(given)} of at most {climb.trials} trials" if given else "its first trial"
            why[length] = f"the run stopped {'after' if given else 'before'} {asked}"
        elif call == "undecided" and not _valid(given):
            why[length] = f"could not be asked: {unfit.get(length, 'every trial was invalid')}"
        elif call == "undecided" and rule == "own" and not _valid(scores.get(base, ())):
            why[length] = f"not comparable: {length_label(base)} could not be asked"
        elif call == "undecided":
            why[length] = f"not decided by its {len(given)} trials, the most that were allowed"
    return why


def summarise(
    scores: Scores, climb: Climb, claimed: int | None, *, seed: int = 0, unfit: Mapping[int, str] | None = None
) -> dict[str, dict[str, Any]]:
    """The effective length under each rule, as in `summary.json`.

    Args:
        scores: of one variant.
        climb: how it was looked for.
        claimed: the variant's own maximum, in tokens.
        seed: of the bootstrap.
        unfit: length to the reason why something of it could not be asked.

    Returns:
        Per rule `length` (shown to work), `low` and `high` (the interval at `confidence`: at least low, below high,
        None where open), `share_of_claimed`, `threshold`, `verdicts`, `needed` and `unsettled` (see there, by
        length), `curve` (estimate and bootstrap interval).

    >>> scores = {1024: [1.0] * 40, 2048: [1.0] * 40, 4096: [0.0] * 9}
    >>> found = summarise(scores, Climb((1024, 2048, 4096), bisections=0), 8192)["absolute"]
    >>> found["length"], found["high"], found["share_of_claimed"]
    (2048, 4096, 0.25)
    """
    result: dict[str, dict[str, Any]] = {}
    for rule, share in RULES.items():
        found = judge(scores, climb, rule)
        calls = {str(length): "undecided" if call == "open" else call for length, call in found.verdicts.items()}
        base = _valid(scores.get(climb.ladder[0], ()))
        threshold = share if rule == "absolute" else (share * sum(base) / len(base) if base else None)
        curve = [one if math.isfinite(one) else None for one in curve_length(scores, climb, rule, seed=seed)]
        result[rule] = {
            "length": found.low,
            "low": found.low,
            "high": found.high,
            "confidence": climb.confidence,
            "share_of_claimed": round(found.low / claimed, 4) if found.low and claimed else None,
            "threshold": threshold,
            "verdicts": dict(sorted(calls.items(), key=lambda item: int(item[0]))),
            "needed": {
                str(length): more
                for length in sorted(found.verdicts)
                if calls[str(length)] == "undecided" and (more := needed(scores, length, climb, rule))
            },
            "unsettled": {str(length): why for length, why in unsettled(scores, climb, rule, unfit or {}).items()},
            "curve": {"length": curve[0], "low": curve[1], "high": curve[2]},
        }
    return result


def needed(scores: Scores, length: int, climb: Climb, rule: str) -> int | None:
    """How many more full scores in a row, at a length and at the shortest, would let the length pass.

    Args:
        scores: so far.
        length: of an undecided one.
        climb: how it is looked for; its most trials do not count here.
        rule: one of `RULES`.

    Returns:
        At least 1; None where it cannot be asked, or more than 1000 would not do.

    >>> needed({1024: [1.0] * 10}, 1024, Climb((1024,), bisections=0), "absolute")
    24
    """
    given, first = scores.get(length, ()), climb.ladder[0]
    if given and all(one is None for one in given):
        return None
    endless = replace(climb, trials=sys.maxsize)

    def passes(more: int) -> bool:
        longer = {at: [*scores.get(at, ()), *[1.0] * more] for at in {first, length}}
        return _test({**scores, **longer}, length, endless, rule)[0] == "pass"

    enough = bisect.bisect_left(range(1, 1001), True, key=passes) + 1
    return enough if enough <= 1000 else None


def _test(scores: Scores, length: int, climb: Climb, rule: str) -> tuple[str, tuple[int, int] | None]:
    """The verdict on a length, and the trial it wants next."""
    given = scores.get(length, ())
    base = scores.get(climb.ladder[0], ())
    levels = {"pass_level": climb.pass_level, "fail_level": climb.fail_level}
    if rule == "absolute":
        call = decide(_valid(given), RULES[rule], **levels)
    elif base and not _valid(base):
        return "undecided", None  # nothing to measure against, however often one asks
    elif decide(_valid(base), FLOOR, **levels) == "fail":
        call = "fail"
    else:
        # "At least this share of the own score" is "the mean of x - share * base is at least 0", seed by seed: the
        # base's own sampling error is in it. Scaled to 0..1, which moves the threshold from 0.
        share = RULES[rule]
        pairs = [(x, b) for x, b in zip(given, base) if x is not None and b is not None]
        call = decide([(x - share * b + share) / (1 + share) for x, b in pairs], share / (1 + share), **levels)
    if call != "open":
        return call, None
    if len(given) >= climb.trials or (given and all(one is None for one in given)):
        return "undecided", None
    if rule == "own" and len(base) <= len(given) and length != climb.ladder[0]:
        return "open", (climb.ladder[0], len(base))
    return "open", (length, len(given))


def _valid(scores: Sequence[float | None]) -> list[float]:
    return [one for one in scores if one is not None]


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
