"""Numbers from the rows of an evaluation: by trial, by task and length, and two variants side by side.

The unit is the trial: one seed, one prompt of every task, and the plain mean of their scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .controls import grade
from .paired import bootstrap_difference, mcnemar
from .sequential import interval

Row = Mapping[str, Any]


def scores(rows: Iterable[Row], variant: str, tasks: Sequence[str]) -> dict[int, list[float | None]]:
    """Length to the score of each trial, by ascending length.

    Args:
        rows: as in `rows.jsonl`; controls and other variants are passed over.
        variant: whose scores.
        tasks: a trial's score is the mean over these.

    Returns:
        None stands for a trial of which a prompt was invalid. The first trial that lacks a row, as after a kill, ends
        the list.

    >>> row = {"variant": "stock", "task": "passkey", "kind": "passkey", "length": 512, "outcome": "hit", "score": 1.0}
    >>> scores([row | {"trial": 0}, row | {"trial": 2}], "stock", ["passkey"])
    {512: [1.0]}
    """
    table: dict[int, dict[int, dict[str, Row]]] = {}
    for row in rows:
        if row["variant"] == variant and row["kind"] in tasks:
            table.setdefault(row["length"], {}).setdefault(row["trial"], {})[row["kind"]] = row
    found: dict[int, list[float | None]] = {}
    for length in sorted(table):
        found[length] = []
        while len(own := table[length].get(len(found[length]), {})) == len(tasks):
            valid = all(row["outcome"] != "invalid" for row in own.values())
            found[length].append(sum(row["score"] for row in own.values()) / len(own) if valid else None)
    return found


def numbers(rows: Sequence[Row], variant: str, tasks: Sequence[str]) -> dict[str, Any]:
    """One variant's scores with their intervals.

    Args:
        rows: of the run.
        variant: whose.
        tasks: that a trial consists of.

    Returns:
        `lengths` (trials: n, score, low, high), `cells` (the same by task, with hits and invalid), `control`
        (`controls.grade`), `invalid`, and `seconds`. Intervals are confidence sequences at 95%, valid at any stop.
    """
    own = [row for row in rows if row["variant"] == variant]
    cells: dict[tuple[str, int], list[Row]] = {}
    for row in own:
        if row["kind"] == row["task"]:
            cells.setdefault((row["task"], row["length"]), []).append(row)
    return {
        "lengths": [
            {"length": length, **_mean([one for one in given if one is not None])}
            for length, given in scores(own, variant, tasks).items()
        ],
        "cells": [{"task": task, "length": length, **_cell(cells[task, length])} for task, length in sorted(cells)],
        "control": grade(own),
        "invalid": sum(row["outcome"] == "invalid" for row in own),
        "seconds": round(sum(row.get("seconds", 0.0) for row in own), 1),
    }


def unfit(rows: Iterable[Row], variant: str, tasks: Sequence[str]) -> dict[int, str]:
    """Why something could not be asked, by length: of each length the first reason, with its task.

    Args:
        rows: as in `rows.jsonl`; controls and other variants are passed over.
        variant: whose.
        tasks: that a trial consists of.

    >>> row = {"variant": "stock", "kind": "passkey", "length": 64, "outcome": "invalid", "reason": "too short"}
    >>> unfit([row], "stock", ["passkey"])
    {64: 'passkey: too short'}
    """
    found: dict[int, str] = {}
    for row in rows:
        if row["variant"] == variant and row["kind"] in tasks and row["outcome"] == "invalid":
            found.setdefault(row["length"], f"{row['kind']}: {row['reason']}")
    return found


def texts(rows: Iterable[Row]) -> dict[str, dict[str, float | None]]:
    """What the prompts of each task were made of: how much of it repeats, how much the needles give away.

    Args:
        rows: of the run; each prompt counts once, controls do not.

    Returns:
        Per task the means of `unique_share` (share of runs of 8 tokens that differ from all earlier ones) and of
        `overlap` (share of the question's content words that the planted facts hold; None where none are planted).

    >>> row = {"variant": "a", "task": "t", "kind": "t", "length": 9, "trial": 0, "unique_share": 0.5, "overlap": 1.0}
    >>> texts([row, row | {"variant": "b"}, row | {"trial": 1, "unique_share": 0.75}])
    {'t': {'unique_share': 0.625, 'overlap': 1.0}}
    """
    prompts: dict[str, dict[tuple[int, int], Row]] = {}
    for row in rows:
        if row["kind"] == row["task"] and row.get("unique_share") is not None:
            prompts.setdefault(row["task"], {})[row["length"], row["trial"]] = row
    found: dict[str, dict[str, float | None]] = {}
    for task, given in sorted(prompts.items()):
        found[task] = {}
        for key in ("unique_share", "overlap"):
            values = [row[key] for row in given.values() if row[key] is not None]
            found[task][key] = round(sum(values) / len(values), 4) if values else None
    return found


def pair(rows: Sequence[Row], first: str, other: str, tasks: Sequence[str], *, seed: int = 0) -> dict[str, Any]:
    """Two variants on the prompts that both have answered.

    Args:
        rows: of the run.
        first: a variant.
        other: another.
        tasks: that a trial consists of.
        seed: of the bootstrap.

    Returns:
        `first`, `other` and `lengths`: per length `prompts`, `only_first` and `only_other` (full score by one alone),
        `p` (exact McNemar), and `difference` of the mean scores, other less first, with `low` and `high` (bootstrap
        over seeds, 95%).
    """
    asked = {
        (row["variant"], row["kind"], row["length"], row["trial"]): row["outcome"] == "hit"
        for row in rows
        if row["kind"] in tasks and row["outcome"] != "invalid"
    }
    lengths: dict[int, list[tuple[bool, bool]]] = {}
    for (variant, kind, length, trial), hit in asked.items():
        if variant == first and (other, kind, length, trial) in asked:
            lengths.setdefault(length, []).append((hit, asked[other, kind, length, trial]))
    mine, theirs = scores(rows, first, tasks), scores(rows, other, tasks)
    entries = []
    for length, pairs in sorted(lengths.items()):
        both = zip(mine.get(length, ()), theirs.get(length, ()))
        differences = [b - a for a, b in both if a is not None and b is not None]
        spread = bootstrap_difference(differences, seed=seed) if differences else (None, None, None)
        alone = pairs.count((True, False)), pairs.count((False, True))
        entries.append(
            {
                "length": length,
                "prompts": len(pairs),
                "only_first": alone[0],
                "only_other": alone[1],
                "p": mcnemar(*alone),
                **dict(zip(("difference", "low", "high"), spread)),
            }
        )
    return {"first": first, "other": other, "lengths": entries}


def _mean(given: Sequence[float]) -> dict[str, Any]:
    low, high = interval(given)
    return {"n": len(given), "score": sum(given) / len(given) if given else None, "low": low, "high": high}


def _cell(rows: Sequence[Row]) -> dict[str, Any]:
    valid = sorted((row for row in rows if row["outcome"] != "invalid"), key=lambda row: row["trial"])
    return {
        **_mean([row["score"] for row in valid]),
        "hits": sum(row["outcome"] == "hit" for row in valid),
        "invalid": len(rows) - len(valid),
    }
