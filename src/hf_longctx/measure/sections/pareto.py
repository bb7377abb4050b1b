"""Recall against memory and time: which variants no other one beats in all three, at each length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_longctx.measure.cost import EAGER
from hf_longctx.measure.heatmap import length_label
from hf_longctx.measure.plot import PLOT, Scale, dash, legend, marker, ticks
from hf_longctx.measure.runs import Part, Run
from hf_longctx.measure.variants import STOCK

from .words import interval, number, percent, seconds, size

TITLE = "Recall, memory and speed"


@dataclass(frozen=True)
class Point:
    """What one variant gives and takes at one length.

    Attributes:
        name: of the variant.
        score: share found; more is better.
        memory: bytes at the peak; less is better.
        first: seconds to the first token; less is better.
        decode: tokens a second at that depth, for reading only.
        told: the score with its interval, in words.
    """

    name: str
    score: float
    memory: float
    first: float
    decode: float
    told: str

    def beats(self, other: Point) -> bool:
        """No worse in score, memory and time, and better in one of them.

        >>> good = Point("a", 1.0, 10, 1.0, 5, "")
        >>> good.beats(Point("b", 0.9, 10, 1.0, 9, "")), good.beats(good)
        (True, False)
        """
        mine, theirs = ((one.score, -one.memory, -one.first) for one in (self, other))
        return mine != theirs and all(a >= b for a, b in zip(mine, theirs))


def front(points: Sequence[Point]) -> dict[str, list[str]]:
    """Each variant's name to those of the ones that beat it; empty on the front.

    >>> front([Point("a", 1.0, 10, 1.0, 5, ""), Point("b", 0.5, 5, 2.0, 5, ""), Point("c", 0.5, 9, 2.0, 5, "")])
    {'a': [], 'b': [], 'c': ['b']}
    """
    return {one.name: [other.name for other in points if other.beats(one)] for one in points}


def build(run: Run, overlay: Sequence[Any]) -> dict[str, Any] | None:
    """A view of each pair of a recall and a cost part of the same model, a panel a length."""
    views = []
    costs = [part for part in run.parts if part.kind == "cost"]
    for part in run.parts:
        for cost in costs:
            if part.recall and part.model == cost.model:
                views += _view(part, cost)
    return {"plot": PLOT, "views": views, "named": len(run.parts) > 2} if views else None


def _view(part: Part, cost: Part) -> list[dict[str, Any]]:
    lengths = {length: found for length in part.lengths if (found := _points(part, cost, length))}
    if not lengths:
        return []
    names = list(dict.fromkeys(point.name for points in lengths.values() for point in points))
    every = [point for points in lengths.values() for point in points]
    least, most = (pick(point.memory for point in every) for pick in (min, max))
    room = 0.15 * (most - least) or 0.1 * most
    x = Scale(least - room, most + room, PLOT["left"], PLOT["right"])
    y = Scale(0, 1, PLOT["bottom"], PLOT["top"])
    panels = [_panel(length, points, names, x, y) for length, points in lengths.items()]
    return [
        {
            "name": part.name,
            "legend": [one | {"dash": dash(0)} for one in legend(names)],
            "panels": panels,
            "rows": [row for panel in panels for row in panel["rows"]],
            "standard": EAGER in names,
        }
    ]


def _points(part: Part, cost: Part, length: int) -> list[Point]:
    measured = {row["variant"]: row for row in cost.rows if row["length"] == length and row["outcome"] == "ok"}
    found = []
    for name, row in measured.items():
        # Standard attention computes what the stock model does, so it finds what that finds.
        twin = STOCK if name == EAGER else name
        entry = part.variants.get(twin)
        if entry is None or (entry.get("definition") or {}) != (cost.variants[name].get("definition") or {}):
            continue
        score = next((one for one in entry["lengths"] if one["length"] == length and one["n"]), None)
        if score is not None:
            first, decode = (row[key]["median"] for key in ("ttft_seconds", "decode_tokens_per_second"))
            found.append(Point(name, score["score"], row["peak_bytes"], first, decode, interval(score)))
    return found


def _panel(length: int, points: Sequence[Point], names: Sequence[str], x: Scale, y: Scale) -> dict[str, Any]:
    beaten = front(points)
    rows: list[dict[str, Any]] = []
    dots: list[Mapping[str, Any]] = []
    for point in points:
        by = beaten[point.name]
        place = names.index(point.name)
        text = f"{point.name}: {percent(point.score)}, {size(point.memory)}, {seconds(point.first)} to the first token"
        dots.append(
            {
                "colour": f"s{place % 7}",
                "marker": marker(place, x(point.memory), y(point.score), 6 if not by else 8),
                "front": not by,
                "title": text,
            }
        )
        rows.append(
            {
                "length": length_label(length),
                "length_value": length,
                "name": point.name,
                "score": percent(point.score),
                "told": point.told,
                "score_value": point.score,
                "memory": size(point.memory),
                "memory_value": point.memory,
                "first": seconds(point.first),
                "first_value": point.first,
                "decode": number(point.decode),
                "decode_value": point.decode,
                "front": not by,
                "beaten": ", ".join(by),
            }
        )
    return {
        "title": f"{length_label(length)} tokens",
        # Those on the front first: what hides behind them shows as an outline.
        "dots": sorted(dots, key=lambda dot: not dot["front"]),
        "rows": rows,
        "grid": [(y(share), percent(share)) for share in (0.0, 0.5, 1.0)],
        "ticks": ticks(x, size, binary=True),
        "summary": "; ".join(dot["title"] for dot in dots),
    }
