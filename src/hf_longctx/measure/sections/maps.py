"""Heatmaps: depth by length for needles, task by length for tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_longctx.measure import heatmap
from hf_longctx.measure.heatmap import depth_label, length_label
from hf_longctx.measure.runs import Part

from .words import interval, percent, scored

TITLE = "Where it finds what it is asked for"


def build(part: Part, overlay: Sequence[Any]) -> dict[str, Any] | None:
    """One map a variant, all of the same shape."""
    if not part.recall:
        return None
    lines: Sequence[Any]
    if part.kind == "needle":
        lengths, lines = heatmap.grid(part.summary)
    else:
        lengths, lines = part.lengths, list(part.summary["tasks"])
    if not lengths:
        return None
    needles = part.settings.get("needles")
    return {
        "by": "depth" if part.kind == "needle" else "task",
        "shared": needles == "shared",
        "single": needles == "single",
        "scale": [heatmap.colour(stop / 8) for stop in range(9)],
        "maps": [_map(part.kind, name, entry, lengths, lines) for name, entry in part.variants.items()],
    }


def _map(
    kind: str, name: str, entry: Mapping[str, Any], lengths: Sequence[int], lines: Sequence[Any]
) -> dict[str, Any]:
    claimed = entry.get("claimed")
    boundary = heatmap.claimed_boundary(claimed, lengths)
    key = "depth" if kind == "needle" else "task"
    cells = {(cell["length"], cell[key]): cell for cell in entry["cells"]}
    pooled = {part["length"]: part for part in entry["lengths"]}
    if claimed is None:
        claim = "claimed length unknown"
    else:
        claim = f"claims {length_label(claimed)}" + ("" if boundary is not None else ", beyond the tested lengths")
    make = _depth_cell if kind == "needle" else _task_cell
    return {
        "name": name,
        "definition": heatmap.definition_text(entry),
        "claim": claim,
        "lengths": [length_label(length) for length in lengths],
        "boundary": boundary,
        "lines": [
            {
                "label": depth_label(line) if kind == "needle" else line,
                "cells": [make(cells.get((length, line)), length, line) for length in lengths],
            }
            for line in lines
        ],
        "pooled": [scored(pooled.get(length), length) for length in lengths],
    }


def _depth_cell(cell: Mapping[str, Any] | None, length: int, depth: float) -> dict[str, Any]:
    where = f"{length_label(length)} at {depth_label(depth)}"
    if cell is None or not cell["n"]:
        return _blank(cell, where)
    told = f"{where}: {cell['hits']} of {cell['n']} found, {interval({**cell, 'score': cell['recall']})}"
    return _filled(f"{cell['hits']}/{cell['n']}", cell["recall"], told)


def _task_cell(cell: Mapping[str, Any] | None, length: int, task: str) -> dict[str, Any]:
    where = f"{task} at {length_label(length)}"
    if cell is None or not cell["n"]:
        return _blank(cell, where)
    told = f"{where}: {cell['hits']} of {cell['n']} in full, mean score {interval(cell)}"
    return _filled(percent(cell["score"]), cell["score"], told)


def _blank(cell: Mapping[str, Any] | None, where: str) -> dict[str, Any]:
    why = "not measured" if cell is None else f"{cell['invalid']} invalid, none scored"
    return {"text": "", "fill": None, "ink": None, "title": f"{where}: {why}"}


def _filled(text: str, share: float, title: str) -> dict[str, Any]:
    fill = heatmap.colour(share)
    return {"text": text, "fill": fill, "ink": heatmap.ink(fill), "title": title}
