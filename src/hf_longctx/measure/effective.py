"""The effective length with its uncertainty: what to test next, and what the tests so far say.

Lengths are climbed from the shortest. Each is tested trial by trial until it passes, fails, or has used up its
trials. At the first failure the gap below it is bisected. What is left is an interval: the longest length shown to
work, and the shortest shown not to. All here is a pure function of the scores.

The interval's error is shared out beforehand: half to its lower end, which is wrong only if the first bad rung or a
bad length of the bisection passes (a fixed sequence: nothing longer is believed after a rung that did not pass), and
half to its upper end, which is wrong only if some good length fails. It takes the curve to fall, never to rise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .defaults import TRIALS
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
        call, ask = verdict_on(scores, length, climb, rule)
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
        call, ask = verdict_on(scores, middle, climb, rule)
        verdicts[middle] = call
        if ask is not None:
            return found(ask)
        if call == "undecided":
            break
        low, high = (middle, high) if call == "pass" else (low, middle)
    return found(None)


def verdict_on(scores: Scores, length: int, climb: Climb, rule: str) -> tuple[str, tuple[int, int] | None]:
    """The verdict on a length, and the trial that it wants next.

    Args:
        scores: so far.
        length: which; it need not be of the ladder.
        climb: how to look.
        rule: one of `RULES`.

    Returns:
        `pass`, `fail`, `undecided` or `open`, and (length, trial) where it is open, which may be one of the base.
    """
    given = scores.get(length, ())
    base = scores.get(climb.ladder[0], ())
    levels = {"pass_level": climb.pass_level, "fail_level": climb.fail_level}
    if rule == "absolute":
        call = decide(valid(given), RULES[rule], **levels)
    elif base and not valid(base):
        return "undecided", None  # nothing to measure against, however often one asks
    elif decide(valid(base), FLOOR, **levels) == "fail":
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


def valid(scores: Sequence[float | None]) -> list[float]:
    """The scores of the trials that could be asked."""
    return [one for one in scores if one is not None]
