"""How sure a recall is: Wilson intervals, three-way verdicts and the effective length of a context.

A recall is a share of a handful of probes, so it never travels alone: every cell carries its ``n`` and a Wilson
score interval, and a length is called *pass*, *fail* or *undecided*, never just a number. Wilson's interval is the one
shown; with few probes it is narrower than it says, so a verdict has to hold by the exact chances as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .binomial import at_least
from .controls import grade, is_control
from .wilson import wilson


def _check_threshold(threshold: float) -> None:
    if not 0.0 <= threshold < 1.0:
        raise ValueError(
            f"threshold={threshold!r}: must be at least 0 and below 1, as a share (0.856, not 85.6); "
            "no number of probes can show a recall of 1"
        )


@dataclass(frozen=True)
class Rule:
    """What a length has to reach to count as working.

    Args:
        share: The recall asked for, in [0, 1).
        relative: If true, ``share`` is of the recall at the shortest tested length, else of 1.

    Raises:
        ValueError: ``share`` is not in [0, 1).
    """

    share: float
    relative: bool = False

    def __post_init__(self) -> None:
        _check_threshold(self.share)

    def threshold(self, by_length: Mapping[int, tuple[int, int]]) -> float | None:
        """The recall to reach, or None while the shortest length gives nothing to compare with.

        Args:
            by_length: Tokens to ``(hits, n)``.

        Returns:
            A recall in [0, 1); None for a relative rule whose shortest length has no scored probe.

        Examples:
            >>> Rule(0.85, relative=True).threshold({1024: (4, 5), 8192: (1, 5)})
            0.68
        """
        if not self.relative:
            return self.share
        if not by_length:
            return None
        hits, n = by_length[min(by_length)]
        return round(self.share * hits / n, 12) if n else None


RULES: Mapping[str, Rule] = {"absolute": Rule(0.856), "own": Rule(0.85, relative=True)}
"""``absolute`` is RULER's bar (85.6, Llama-2-7B at 4K; arXiv 2404.06654), ``own`` NoLiMa's (85% of the model's own
short-context score; arXiv 2502.05167)."""


LEVEL = 0.05
"""Chance of a wrong pass, and of a wrong fail, that a verdict on one length may have against a known threshold:
"judged at 95%". Under the rule `own` the threshold is a share of a score that was measured too, and its error is not
in this: at five probes a length a verdict at the line may be wrong in 12 of 100 cases."""


def verdict(hits: int, n: int, threshold: float) -> str:
    """Whether the true recall is shown to be on one side of a threshold.

    Args:
        hits: Probes answered right.
        n: Probes scored.
        threshold: The recall to reach, in [0, 1).

    Returns:
        ``"pass"`` if the lower Wilson bound reaches the threshold, and a recall below it would give so many hits with
        a chance of at most `LEVEL`; ``"fail"`` if the upper bound stays below it, and a recall that reaches it would
        give so few hits with a chance of at most `LEVEL`; else ``"undecided"``.

    Raises:
        ValueError: As `wilson`, or a threshold outside [0, 1).

    Examples:
        >>> verdict(23, 23, 0.856), verdict(5, 5, 0.856), verdict(0, 5, 0.856)
        ('pass', 'undecided', 'fail')
        >>> verdict(0, 1, 0.856)  # Wilson's upper bound is 0.79, and yet 1 in 7 such probes miss at the threshold
        'undecided'
    """
    _check_threshold(threshold)
    low, high = wilson(hits, n)
    if threshold == 0.0:  # every recall reaches it
        return "pass" if n else "undecided"
    if low >= threshold and at_least(hits, n, threshold) <= LEVEL:
        return "pass"
    if high < threshold and at_least(n - hits, n, 1 - threshold) <= LEVEL:
        return "fail"
    return "undecided"


def needed(hits: int, n: int, threshold: float) -> int:
    """How many further probes, all of them hits, would turn the verdict into ``"pass"``.

    Args:
        hits: Probes answered right so far.
        n: Probes scored so far.
        threshold: The recall to reach, in [0, 1).

    Returns:
        The smallest such number; 0 if the verdict is a pass already.

    Raises:
        ValueError: As `verdict`.

    Examples:
        >>> needed(0, 0, 0.856), needed(5, 5, 0.856), needed(4, 5, 0.856), needed(23, 23, 0.856)
        (23, 18, 31, 0)
    """
    _check_threshold(threshold)

    def passes(extra: int) -> bool:
        return verdict(hits + extra, n + extra, threshold) == "pass"

    # With straight hits the lower bound only grows and the chance of so many only falls, so double to bracket the
    # answer, then bisect.
    top = 1
    while not passes(top):
        top *= 2
    bottom = 0
    while bottom < top:
        middle = (bottom + top) // 2
        bottom, top = (bottom, middle) if passes(middle) else (middle + 1, top)
    return top


def effective(
    by_length: Mapping[int, tuple[int, int]], rules: Mapping[str, Rule] = RULES
) -> dict[str, dict[str, Any]]:
    """The longest tested length that is shown to work, under each rule.

    Lengths are judged from the shortest upwards and the first that does not pass ends the climb: a fixed-sequence
    test, in which testing many lengths costs no correction of the confidence. A longer length that passes again
    after a failure therefore does not count. Depths are pooled. The threshold of a relative rule is taken at its
    point estimate; its own sampling error is not carried on. A model that finds nothing at its shortest length has
    no score to keep, and fails a relative rule everywhere.

    Args:
        by_length: Tokens to ``(hits, n)``.
        rules: Name to `Rule`.

    Returns:
        Per rule ``{"length": int | None, "threshold": float | None, "verdicts": {"1024": "pass" | "fail" |
        "undecided"}, "needed": {"1024": int}}``; keys are strings as in JSON, ``needed`` lists the undecided
        lengths that have a threshold and a scored probe: where none could be asked, more could not be either.

    Raises:
        ValueError: As `wilson`.

    Examples:
        >>> found = effective({1024: (30, 30), 2048: (28, 30), 4096: (2, 30)})
        >>> found["absolute"]["length"], found["absolute"]["verdicts"]
        (1024, {'1024': 'pass', '2048': 'undecided', '4096': 'fail'})
        >>> found["absolute"]["needed"]
        {'2048': 17}
    """
    return {name: _judge(by_length, rule) for name, rule in rules.items()}


def _judge(by_length: Mapping[int, tuple[int, int]], rule: Rule) -> dict[str, Any]:
    threshold = rule.threshold(by_length)
    verdicts: dict[str, str] = {}
    missing: dict[str, int] = {}
    longest: int | None = None
    climbing = True
    for length in sorted(by_length):
        hits, n = by_length[length]
        if threshold is None:
            call = "undecided"
        elif rule.relative and threshold == 0.0:
            call = "fail" if n else "undecided"
        else:
            call = verdict(hits, n, threshold)
        verdicts[str(length)] = call
        if call == "undecided" and threshold and n:
            missing[str(length)] = needed(hits, n, threshold)
        climbing = climbing and call == "pass"
        if climbing:
            longest = length
    return {"length": longest, "threshold": threshold, "verdicts": verdicts, "needed": missing}


def summarise(rows: Iterable[Mapping[str, Any]], *, claimed: Mapping[str, int | None]) -> dict[str, dict[str, Any]]:
    """Turn the rows of a needle run into numbers with their uncertainty.

    ``n`` counts hits and misses. An invalid probe (one that could not be asked as specified) is counted apart and
    never as a miss.

    Args:
        rows: Rows as in ``rows.jsonl``; needs ``variant``, ``length``, ``depth``, ``kind`` and ``outcome``.
        claimed: Variant name to the context length its own config claims, in tokens. Its order comes first, and a
            variant without rows yet is listed with no cells; a variant that only the rows know claims None.

    Returns:
        Per variant ``{"claimed", "cells", "lengths", "effective", "control", "invalid", "reasons"}``. A cell is
        ``{"length", "depth", "n", "hits", "recall", "low", "high", "invalid"}`` with ``recall`` None while ``n`` is
        0; ``lengths`` has the same pooled over depths, without ``depth``. ``effective`` and ``control`` are as
        returned by `effective`, with the reason of each length that could not be asked in ``unsettled``, and by
        `controls.grade`; ``invalid`` is the number of invalid probes, controls included,
        and ``reasons`` maps each reason to their number.

    Raises:
        ValueError: A row has an outcome other than hit, miss or invalid.

    Examples:
        >>> row = {"variant": "stock", "length": 1024, "depth": 0.5, "kind": "needle", "outcome": "hit"}
        >>> found = summarise([row, row | {"outcome": "invalid"}], claimed={"stock": 8192})["stock"]
        >>> found["lengths"][0]["hits"], found["lengths"][0]["n"], found["invalid"]
        (1, 1, 1)
    """
    by_variant: dict[str, list[Mapping[str, Any]]] = {name: [] for name in claimed}
    for row in rows:
        if row["outcome"] not in ("hit", "miss", "invalid"):
            raise ValueError(
                f"outcome={row['outcome']!r} in a row of variant {row['variant']!r}: must be hit, miss or invalid; "
                "the run was written by another version, choose another folder"
            )
        by_variant.setdefault(row["variant"], []).append(row)
    return {name: _summarise_variant(own, claimed.get(name)) for name, own in by_variant.items()}


def _summarise_variant(rows: Sequence[Mapping[str, Any]], claimed: int | None) -> dict[str, Any]:
    cells: dict[tuple[int, float], list[str]] = {}
    lengths: dict[int, list[str]] = {}
    for row in rows:
        if is_control(row):
            continue
        # Rounded, so that a depth computed in two ways is still one cell.
        length, depth = int(row["length"]), round(float(row["depth"]), 6)
        cells.setdefault((length, depth), []).append(row["outcome"])
        lengths.setdefault(length, []).append(row["outcome"])
    unfit: dict[str, str] = {}
    for row in rows:
        if row["outcome"] == "invalid" and not is_control(row):
            unfit.setdefault(str(row["length"]), f"could not be asked: {row.get('reason')}")
    pooled = [{"length": length, **_count(lengths[length])} for length in sorted(lengths)]
    judged = effective({entry["length"]: (entry["hits"], entry["n"]) for entry in pooled})
    for found in judged.values():
        found["unsettled"] = {str(one["length"]): unfit[str(one["length"])] for one in pooled if not one["n"]}
    return {
        "claimed": claimed,
        "cells": [
            {"length": length, "depth": depth, **_count(cells[length, depth])} for length, depth in sorted(cells)
        ],
        "lengths": pooled,
        "effective": judged,
        "control": grade(rows),
        "invalid": sum(row["outcome"] == "invalid" for row in rows),
        "reasons": dict(Counter(str(row.get("reason")) for row in rows if row["outcome"] == "invalid")),
    }


def _count(outcomes: Sequence[str]) -> dict[str, Any]:
    hits, invalid = outcomes.count("hit"), outcomes.count("invalid")
    n = len(outcomes) - invalid
    low, high = wilson(hits, n)
    return {
        "n": n,
        "hits": hits,
        "recall": hits / n if n else None,
        "low": low,
        "high": high,
        "invalid": invalid,
    }
