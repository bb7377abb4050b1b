"""What a search for the effective length has shown, as the summary of a run tells it, and what it left open."""

from __future__ import annotations

import bisect
import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .effective import RULES, Climb, Scores, judge, valid, verdict_on
from .effective_curve import curve_length
from .heatmap import length_label


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
        base = valid(scores.get(climb.ladder[0], ()))
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
        return verdict_on({**scores, **longer}, length, endless, rule)[0] == "pass"

    enough = bisect.bisect_left(range(1, 1001), True, key=passes) + 1
    return enough if enough <= 1000 else None


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
        elif call == "undecided" and not valid(given):
            why[length] = f"could not be asked: {unfit.get(length, 'every trial was invalid')}"
        elif call == "undecided" and rule == "own" and not valid(scores.get(base, ())):
            why[length] = f"not comparable: {length_label(base)} could not be asked"
        elif call == "undecided":
            why[length] = f"not decided by its {len(given)} trials, the most that were allowed"
    return why
