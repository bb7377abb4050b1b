"""How sure a recall is: Wilson intervals, three-way verdicts and the effective length of a context.

A recall is a share of a handful of probes, so it never travels alone: every cell carries its ``n`` and a Wilson
score interval, and a length is called *pass*, *fail* or *undecided*, never just a number.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

CONTROL_LIMIT = 0.05
"""Share of unanswerable questions a model may seem to answer before its score is no longer believed."""


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


def verdict(hits: int, n: int, threshold: float) -> str:
    """Whether the true recall is shown to be on one side of a threshold.

    Args:
        hits: Probes answered right.
        n: Probes scored.
        threshold: The recall to reach, in [0, 1).

    Returns:
        ``"pass"`` if the lower Wilson bound reaches the threshold, ``"fail"`` if the upper one stays below it, else
        ``"undecided"``.

    Raises:
        ValueError: As `wilson`, or a threshold outside [0, 1).

    Examples:
        >>> verdict(23, 23, 0.856), verdict(5, 5, 0.856), verdict(0, 5, 0.856)
        ('pass', 'undecided', 'fail')
    """
    _check_threshold(threshold)
    low, high = wilson(hits, n)
    if n and low >= threshold:
        return "pass"
    return "fail" if high < threshold else "undecided"


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

    # The lower bound only grows with straight hits, so double to bracket the answer, then bisect.
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
        lengths that have a threshold.

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
        if call == "undecided" and threshold:
            missing[str(length)] = needed(hits, n, threshold)
        climbing = climbing and call == "pass"
        if climbing:
            longest = length
    return {"length": longest, "threshold": threshold, "verdicts": verdicts, "needed": missing}


def grade(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Whether the no-needle control leaves the score believable.

    The control asks for a value that was never planted. Hits there come from guessing, leakage or a scoring that is
    too lenient, and would come on the planted needles too.

    Args:
        rows: Rows of one variant; all but the scored ones of kind ``"control"`` are passed over.

    Returns:
        ``{"n", "hits", "low", "high", "trusted", "note"}``: ``trusted`` is False if the lower Wilson bound of the
        control's hit rate is above `CONTROL_LIMIT`, None if no control was scored, else True.

    Examples:
        >>> grade([{"kind": "control", "outcome": "hit"}] * 3)["note"]
        '3 of 3 questions about a needle that was never there were "answered": its score cannot be trusted'
        >>> grade([{"kind": "control", "outcome": "miss"}] * 3)["trusted"]
        True
    """
    outcomes = [row["outcome"] for row in rows if row.get("kind") == "control" and row["outcome"] != "invalid"]
    n, hits = len(outcomes), outcomes.count("hit")
    low, high = wilson(hits, n)
    if n == 0:
        trusted, note = None, "no control was scored"
    elif hits and low > CONTROL_LIMIT:
        trusted = False
        note = (
            f'{hits} of {n} questions about a needle that was never there were "answered": its score cannot be trusted'
        )
    else:
        trusted, note = True, f"{hits} of {n} questions about a needle that was never there were answered"
    return {"n": n, "hits": hits, "low": low, "high": high, "trusted": trusted, "note": note}


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
        returned by `effective` and `grade`; ``invalid`` is the number of invalid probes, controls included, and
        ``reasons`` maps each reason to their number.

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
        if row.get("kind") == "control":
            continue
        # Rounded, so that a depth computed in two ways is still one cell.
        length, depth = int(row["length"]), round(float(row["depth"]), 6)
        cells.setdefault((length, depth), []).append(row["outcome"])
        lengths.setdefault(length, []).append(row["outcome"])
    pooled = [{"length": length, **_count(lengths[length])} for length in sorted(lengths)]
    return {
        "claimed": claimed,
        "cells": [
            {"length": length, "depth": depth, **_count(cells[length, depth])} for length, depth in sorted(cells)
        ],
        "lengths": pooled,
        "effective": effective({entry["length"]: (entry["hits"], entry["n"]) for entry in pooled}),
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
