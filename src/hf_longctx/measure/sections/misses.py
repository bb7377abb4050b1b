"""The worst failures, each in its context."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hf_longctx.measure.controls import is_control
from hf_longctx.measure.heatmap import depth_label, length_label
from hf_longctx.measure.runs import Part, Row

from .words import percent

TITLE = "What was missed"
MAX_SHOWN = 40
"""Cases shown a variant; the rest are counted and stay in the rows."""
_LONGEST_ANSWER = 240


def build(part: Part, overlay: Sequence[Any]) -> dict[str, Any] | None:
    """Misses of each variant: the least score first, then the shortest text."""
    if not part.recall:
        return None
    groups = by_variant(part, lambda row: row["outcome"] == "miss" and not is_control(row))
    return {"groups": groups, "asked": any(row["outcome"] != "invalid" for row in part.rows)}


def by_variant(part: Part, keep: Callable[[Row], bool]) -> list[dict[str, Any]]:
    """Cases of each variant, worst first.

    Args:
        part: the run.
        keep: which rows.

    Returns:
        Per variant that has any, `name`, `total`, `rows` and how many `more` there are.
    """
    groups = []
    for name in part.variants:
        own = sorted((row for row in part.rows if row["variant"] == name and keep(row)), key=_badness)
        if own:
            shown = [_case(row) for row in own[:MAX_SHOWN]]
            groups.append({"name": name, "total": len(own), "rows": shown, "more": len(own) - len(shown)})
    return groups


def _badness(row: Row) -> tuple[float, int, float, int]:
    depth = -1 if row["depth"] is None else row["depth"]
    return row.get("score") or 0.0, row["length"], depth, row.get("trial", 0)


def _case(row: Mapping[str, Any]) -> dict[str, Any]:
    context = row.get("context") or {}
    answer, expected = str(row.get("answer") or "").strip(), row.get("expected")
    where = length_label(int(row["length"])) + (f" at {depth_label(row['depth'])}" if row["depth"] is not None else "")
    kind = str(row.get("kind", "needle"))
    return {
        "where": where,
        "trial": int(row.get("trial", 0)) + 1,
        "kind": "" if kind == "needle" else kind,
        "score": percent(row["score"]) if row.get("score") else "",
        "reason": str(row.get("reason") or ""),
        "question": str(row.get("question") or ""),
        "expected": ", ".join(map(str, expected)) if isinstance(expected, list) else str(expected or ""),
        "answer": answer if len(answer) <= _LONGEST_ANSWER else answer[:_LONGEST_ANSWER] + "…",
        "before": str(context.get("before") or ""),
        "needle": str(context.get("needle") or ""),
        "after": str(context.get("after") or ""),
    }
