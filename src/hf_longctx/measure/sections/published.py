"""A published model beside the run: its marketed and its measured length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_longctx.measure.heatmap import length_label
from hf_longctx.measure.published import label
from hf_longctx.measure.runs import Run

from .words import number

TITLE = "Beside a published model"


def build(run: Run, overlay: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """One row a suite that has measured it."""
    if not overlay:
        return None
    lengths = sorted({length for row in overlay for length in row["scores"]})
    return {
        "lengths": [length_label(length) for length in lengths],
        "rows": [
            {
                "model": label(row),
                "suite": row["suite"].upper(),
                "claimed": length_label(row["claimed"]) if row["claimed"] else "unknown",
                "effective": row["effective_text"],
                "printed": row["printed"] or "",
                "line": f"{row['line']:g}",
                "scores": [number(row["scores"].get(length)) for length in lengths],
                "recipe": "; ".join(filter(None, (row["pattern"], row["rope"]))),
                "source": " · ".join(
                    str(row["source"][key]) for key in ("title", "paper", "date", "status") if row["source"].get(key)
                ),
            }
            for row in overlay
        ],
    }
