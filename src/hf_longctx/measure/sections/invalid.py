"""What could not be asked, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_longctx.measure.runs import Part

from .misses import by_variant

TITLE = "What could not be asked"


def build(part: Part, overlay: Sequence[Any]) -> dict[str, Any] | None:
    """Invalid probes of each variant."""
    if not part.recall:
        return None
    groups = by_variant(part, lambda row: row["outcome"] == "invalid")
    return {"groups": groups} if groups else None
