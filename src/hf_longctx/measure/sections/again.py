"""How to run it again: the command, versions, hardware and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_longctx.measure.runs import Part, Run

from .words import plain

TITLE = "Run it again"


def build(run: Run, overlay: Sequence[Any]) -> dict[str, Any]:
    """The command of the run, and what it ran on."""
    return {"command": str(run.facts.get("command") or ""), "facts": _facts(run)}


def _facts(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    groups = []
    # Package names keep their underscores, field names read better without; a byte count is told in GiB.
    versions = [(key, plain(value)) for key, value in (run.facts.get("versions") or {}).items()]
    hardware = _fields(run.facts.get("hardware") or {})
    if run.facts.get("started"):
        hardware.append(("started", str(run.facts["started"])))
    groups = [("Versions", versions), ("Hardware", hardware)]
    for part in run.parts:
        groups.append(("Settings" if len(run.parts) == 1 else f"Settings of {part.name}", _settings(part)))
    return [(title, items) for title, items in groups if items]


def _settings(part: Part) -> list[tuple[str, str]]:
    found = _fields(part.settings)
    if part.summary.get("seed") is not None and "seed" not in part.settings:
        found.insert(0, ("seed", str(part.summary["seed"])))
    return found


def _fields(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    known = {key: value for key, value in found.items() if value not in (None, "", {}, [])}
    return [(key.removesuffix("_bytes").replace("_", " "), plain(value, key)) for key, value in known.items()]
