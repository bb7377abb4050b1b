"""Negative controls: questions about what was never in the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_longctx.measure.runs import Part

TITLE = "Can the score be trusted?"


def build(part: Part, overlay: Sequence[Any]) -> dict[str, Any] | None:
    """Control hits of each variant, and what they mean."""
    if not part.recall:
        return None
    return {"lines": [(name, entry["control"]) for name, entry in part.variants.items()]}


def doubted(part: Part) -> list[tuple[str, str]]:
    """Variants whose score cannot be trusted, each with the reason: for the head of the page."""
    if not part.recall:
        return []
    return [(name, entry["control"]["note"]) for name, entry in part.variants.items() if is_doubted(entry)]


def is_doubted(entry: Mapping[str, Any]) -> bool:
    """Whether a variant answered what was never asked for."""
    return entry["control"]["trusted"] is False
