"""What the run itself cost; no measure of the model's speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_longctx.measure.runs import Part

TITLE = "What the run cost"


def build(part: Part, overlay: Sequence[Any]) -> dict[str, Any] | None:
    """Prefill tokens and seconds of each variant."""
    lines = [_line(name, entry) for name, entry in part.variants.items()]
    if not part.recall or not any(line["spent"] or line["seconds"] for line in lines):
        return None
    return {"lines": lines, "shared": any(line["saved"] for line in lines)}


def _line(name: str, entry: Mapping[str, Any]) -> dict[str, str]:
    prefill = entry.get("prefill") or {}
    spent, saved = prefill.get("spent"), prefill.get("saved")
    seconds = entry.get("seconds")
    return {
        "name": name,
        "spent": "" if spent is None else f"{spent:,}",
        "saved": "" if saved is None else f"{saved:,}",
        "factor": f"{(spent + saved) / spent:.1f} times fewer" if spent and saved else "",
        "seconds": "" if seconds is None else f"{seconds:,.0f} s",
    }
