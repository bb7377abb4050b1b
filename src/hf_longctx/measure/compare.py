"""Two runs side by side: what differs in their results, and what differs in how they were made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .runs import Part, Row, Run, as_trials
from .tally import pair

_UNEQUAL = {"chunk", "model"}
"""Settings that are compared elsewhere, or change speed alone."""
_PROMPTS = ("seed", "haystack", "text", "files", "style", "values", "needles", "lengths", "depths", "vocabulary")
"""Settings that must agree for two runs to have asked the same prompts; those that a kind of run lacks agree."""
_SAME = ("question", "expected", "needle_at", "needles", "prompt_tokens")
"""Fields of a row that must agree for two answers to be answers to the same prompt."""
_FIGURES = ("ttft_seconds", "prefill_tokens_per_second", "decode_tokens_per_second", "peak_bytes", "cache_bytes")


def compare(first: Run, other: Run) -> dict[str, Any]:
    """What two runs say of the same variants and lengths.

    Parts of suites are matched by name and kind, those of single runs by kind.

    Args:
        first: a run.
        other: another, of the same or of another model.

    Returns:
        ``first`` and ``other`` (names, with A and B behind them where they are alike); ``differ``: where the settings
        differ, each with ``part`` (None for the run as a whole), ``field``, ``first`` and ``other``; ``recall``: per
        part, variant and length both scores with their intervals, the ``difference`` of the means, other less first,
        ``paired`` (as a length of `tally.pair`) where both runs asked the same prompts, else None
        and ``unpaired``, the reason; ``effective``: per part, variant and rule both intervals; ``cost``: per part,
        variant and length both outcomes and, for each figure, both medians and their ``ratio``;
        ``only``: parts and variants that one run alone has.

    Raises:
        ValueError: the runs have no part of the same kind, or name, in common.
    """
    matched = _matched(first, other)
    alike = first.name == other.name
    document: dict[str, Any] = {
        "first": f"{first.name} (A)" if alike else first.name,
        "other": f"{other.name} (B)" if alike else other.name,
        "differ": _differences(first, other, matched),
        "recall": [],
        "effective": [],
        "cost": [],
        "only": _only(first, other, matched),
    }
    for a, b in matched:
        common = [name for name in a.variants if name in b.variants]
        if a.kind == "cost":
            document["cost"] += [line for name in common for line in _cost(a, b, name)]
        elif a.recall:
            document["recall"] += [line for name in common for line in _recall(a, b, name)]
            document["effective"] += [line for name in common for line in _effective(a, b, name)]
    return document


def unpaired(first: Part, other: Part) -> str | None:
    """Why two parts did not ask the same prompts, or None if by their settings they did."""
    changed = [key for key in _PROMPTS if first.settings.get(key) != other.settings.get(key)]
    if first.kind == "tasks" and first.summary["tasks"] != other.summary["tasks"]:
        changed.append("tasks")
    return f"not the same prompts: {', '.join(changed)} differ" if changed else None


# ------------------------------------------------------------------ what is compared with what


def _matched(first: Run, other: Run) -> list[tuple[Part, Part]]:
    both_suites = first.suite and other.suite
    found = []
    for part in first.parts:
        same = [one for one in other.parts if one.kind == part.kind]
        named = [one for one in same if one.name == part.name]
        if named or (same and not both_suites):
            found.append((part, (named or same)[0]))
    if not found:
        held = [", ".join(f"{part.name} ({part.kind})" for part in run.parts) for run in (first, other)]
        raise ValueError(
            f"the runs have nothing in common: {first.name!r} holds {held[0]} and {other.name!r} holds {held[1]}; "
            "give two runs of one kind"
        )
    return found


def _only(first: Run, other: Run, matched: Sequence[tuple[Part, Part]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for index, (side, run) in enumerate((("first", first), ("other", other))):
        known = [pair[index] for pair in matched]
        found += [{"in": side, "part": part.name, "variant": None} for part in run.parts if part not in known]
    for a, b in matched:
        found += [{"in": "first", "part": a.name, "variant": name} for name in a.variants if name not in b.variants]
        found += [{"in": "other", "part": b.name, "variant": name} for name in b.variants if name not in a.variants]
    return found


def _differences(first: Run, other: Run, matched: Iterable[tuple[Part, Part]]) -> list[dict[str, Any]]:
    def changed(part: str | None, a: Mapping[str, Any], b: Mapping[str, Any], group: str = "") -> list[dict[str, Any]]:
        return [
            {"part": part, "field": group + key, "first": a.get(key), "other": b.get(key)}
            for key in dict.fromkeys([*a, *b])
            if a.get(key) != b.get(key)
        ]

    found = []
    for group in ("versions", "hardware"):
        found += changed(None, first.facts.get(group) or {}, other.facts.get(group) or {}, f"{group} ")
    for a, b in matched:
        mine, theirs = ({k: v for k, v in part.settings.items() if k not in _UNEQUAL} for part in (a, b))
        found += changed(a.name, {"model": a.model} | mine, {"model": b.model} | theirs)
        for name in a.variants:
            if name in b.variants:
                one, two = ({"definition": part.variants[name].get("definition") or {}} for part in (a, b))
                found += changed(a.name, one, two, f"variant {name} ")
    return found


# ------------------------------------------------------------------ results


def _recall(a: Part, b: Part, name: str) -> list[dict[str, Any]]:
    mine, theirs = ({one["length"]: one for one in part.variants[name]["lengths"]} for part in (a, b))
    reason = unpaired(a, b)
    paired = {} if reason else _paired(a, b, name)
    lines = []
    for length in sorted({*mine, *theirs}):
        one: Any = mine.get(length)
        two: Any = theirs.get(length)
        scored = one and two and one["score"] is not None and two["score"] is not None
        lines.append(
            {
                "part": a.name,
                "variant": name,
                "length": length,
                "first": _score(one),
                "other": _score(two),
                "difference": two["score"] - one["score"] if scored else None,
                "paired": paired.get(length),
                "unpaired": reason or (None if length in paired else "no prompt that both were asked"),
            }
        )
    return lines


def _score(part: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if part is None else {key: part.get(key) for key in ("n", "hits", "score", "low", "high")}


def _paired(a: Part, b: Part, name: str) -> dict[int, dict[str, Any]]:
    """Length to the paired test, over the prompts that are the same in both."""
    rows: list[Row] = []
    (mine, tasks), (theirs, _) = as_trials(a), as_trials(b)
    asked = {_place(row): row for row in mine if row["variant"] == name}
    for row in theirs:
        twin = asked.get(_place(row)) if row["variant"] == name else None
        if twin is not None and all(twin.get(key) == row.get(key) for key in _SAME):
            rows += [{**twin, "variant": "first"}, {**row, "variant": "other"}]
    found = pair(rows, "first", "other", tasks, seed=int(a.settings.get("seed") or 0))["lengths"]
    for entry in found:
        # With a single trial the bootstrap knows nothing of the spread.
        if (entry["low"], entry["high"]) == (-1.0, 1.0):
            entry["low"] = entry["high"] = None
    return {entry["length"]: entry for entry in found}


def _place(row: Row) -> tuple[Any, ...]:
    return row["kind"], row["length"], row["trial"]


def _effective(a: Part, b: Part, name: str) -> list[dict[str, Any]]:
    mine, theirs = (part.variants[name]["effective"] for part in (a, b))
    keys = ("low", "high", "verdicts")
    return [
        {
            "part": a.name,
            "variant": name,
            "rule": rule,
            "first": {key: mine[rule][key] for key in keys},
            "other": {key: theirs[rule][key] for key in keys},
        }
        for rule in mine
        if rule in theirs
    ]


def _cost(a: Part, b: Part, name: str) -> list[dict[str, Any]]:
    mine, theirs = ({row["length"]: row for row in part.rows if row["variant"] == name} for part in (a, b))
    lines = []
    for length in sorted({*mine, *theirs}):
        rows = mine.get(length), theirs.get(length)
        figures = {}
        for key in _FIGURES:
            values = [_median(row, key) for row in rows]
            ratio = values[1] / values[0] if values[0] and values[1] is not None else None
            figures[key] = {"first": values[0], "other": values[1], "ratio": ratio}
        outcomes = [row["outcome"] if row else None for row in rows]
        line = {"part": a.name, "variant": name, "length": length, "outcomes": outcomes, "figures": figures}
        lines.append(line)
    return lines


def _median(row: Row | None, key: str) -> float | None:
    if row is None or row["outcome"] != "ok" or row.get(key) is None:
        return None
    value = row[key]
    return value["median"] if isinstance(value, Mapping) else value
