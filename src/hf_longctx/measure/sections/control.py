"""Negative controls: questions to which what is scored is no answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_longctx.measure.controls import CONTROLS, LONE, failed, meaning
from hf_longctx.measure.runs import Part

TITLE = "Can the score be trusted?"


def build(part: Part, overlay: Sequence[Any]) -> dict[str, Any] | None:
    """Hits of each variant in each control, and what they mean."""
    if not part.recall:
        return None
    controls = (*CONTROLS, *([LONE] if any(entry["control"][LONE]["n"] for entry in part.variants.values()) else []))
    lines = [_line(name, entry["control"], controls) for name, entry in part.variants.items()]
    return {"controls": controls, "lines": lines}


def _line(name: str, control: Mapping[str, Any], controls: Sequence[str]) -> dict[str, Any]:
    trusted, hits = control["trusted"], sum(control[one]["hits"] for one in CONTROLS)
    clean = "acceptable" if hits else "clean"
    if control[LONE]["hits"]:
        clean += "; a value is found, but not shown to be the one asked for"
    few = "some were answered, too few to tell what that means" if hits else "no control was scored"
    said = {None: few, True: clean}
    return {
        "name": name,
        "counts": [control[one] for one in controls],
        "call": {None: "undecided", True: "pass", False: "fail"}[trusted],
        "said": said.get(trusted) or f"its score cannot be trusted: {meaning(failed(control))}",
    }


def doubted(part: Part) -> list[tuple[str, str]]:
    """Variants whose score cannot be trusted, each with the reason: for the head of the page."""
    if not part.recall:
        return []
    return [(name, entry["control"]["note"]) for name, entry in part.variants.items() if is_doubted(entry)]


def is_doubted(entry: Mapping[str, Any]) -> bool:
    """Whether a variant answered what was never asked for."""
    return entry["control"]["trusted"] is False
