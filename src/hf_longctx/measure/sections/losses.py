"""The loss of every training step of an extended model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_longctx.measure.heatmap import length_label
from hf_longctx.measure.plot import PLOT, Scale, dash, marker, path, ticks
from hf_longctx.measure.runs import EXTENSION, Part

from .words import number

TITLE = "Training"
_MARKED = 40
"""A stage with more steps is drawn as a line alone."""


def build(part: Part, overlay: Sequence[Any]) -> dict[str, Any] | None:
    """A chart of the losses, a line a stage, and a table of the stages."""
    if part.kind != EXTENSION:
        return None
    stages = part.summary["stages"]
    logs, before = [], 0
    for stage in stages:
        logs.append([(before + row["step"], row["loss"]) for row in stage["log"]])
        before += stage["steps"]
    points = [point for log in logs for point in log]
    return {
        "plot": PLOT,
        "chart": _chart(logs) if points else None,
        "stages": [
            {
                "window": length_label(stage["window"]),
                "rope": stage["rope"],
                "length": length_label(stage["length"]),
                "batch": stage["batch"],
                "steps": stage["steps"],
                "rate": f"{stage['learning_rate']:g}",
                "first": number(log[0][1]) if log else "",
                "last": number(log[-1][1]) if log else "",
            }
            for stage, log in zip(stages, logs)
        ],
    }


def _chart(logs: Sequence[Sequence[tuple[int, float]]]) -> dict[str, Any]:
    points = [point for log in logs for point in log]
    steps, losses = zip(*points)
    room = 0.05 * (max(losses) - min(losses)) or 0.1
    x = Scale(min(steps), max(steps), PLOT["left"] + 8, PLOT["right"] - 8)
    y = Scale(max(0.0, min(losses) - room), max(losses) + room, PLOT["bottom"], PLOT["top"])
    marks = [step for step in (1, *(round(max(steps) * share / 4) for share in (1, 2, 3, 4))) if step >= min(steps)]
    return {
        "title": "Loss by step",
        "ticks": [(x(step), f"{step}") for step in dict.fromkeys(marks)],
        "grid": ticks(y, number),
        "series": [
            {
                "colour": f"s{index % 7}",
                "dash": dash(index),
                "line": path((x(step), y(loss)) for step, loss in log),
                "spread": [],
                "dots": [
                    (marker(index, x(step), y(loss), 3), f"step {step}: {number(loss)}")
                    for step, loss in (log if len(log) <= _MARKED else ())
                ],
                "rings": [],
            }
            for index, log in enumerate(logs)
        ],
        "failures": [],
        "summary": f"{number(losses[0])} at step {steps[0]}, {number(losses[-1])} at step {steps[-1]}",
    }
