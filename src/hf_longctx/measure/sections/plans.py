"""What each variant changes: its pattern as a picture, its layers as dispatched."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from hf_longctx.measure import heatmap
from hf_longctx.measure.runs import EXTENSION, Part
from hf_longctx.measure.silhouette import silhouettes

from .words import plain

logger = logging.getLogger(__name__)

TITLE = "What each variant changes"


def build(part: Part, overlay: Sequence[Any]) -> dict[str, Any] | None:
    """The plan of every variant."""
    if part.kind == EXTENSION:
        return None
    return {"plans": [_plan(name, entry, part.lengths) for name, entry in part.variants.items()]}


def _plan(name: str, entry: Mapping[str, Any], lengths: Sequence[int]) -> dict[str, Any]:
    """The plan of a variant: layers that are alike in a row are told once."""
    plan = entry.get("plan") or {}
    layers = plan.get("layers") if isinstance(plan, Mapping) else None
    columns: list[str] = []
    lines: list[dict[str, Any]] = []
    if isinstance(layers, Sequence) and layers and all(isinstance(layer, Mapping) for layer in layers):
        own = [{key: value for key, value in layer.items() if key not in ("layer", "index")} for layer in layers]
        columns = list(dict.fromkeys(k for layer in own for k, value in layer.items() if _field(k, value)))
        start = 0
        for shown, group in groupby([_layer(layer, columns) for layer in own]):
            end = start + len(list(group)) - 1
            lines.append({"layers": f"{start}" if start == end else f"{start} to {end}", "cells": shown})
            start = end + 1
    rest = {key: value for key, value in plan.items() if key != "layers" or not lines} if plan else {}
    dispatched = entry.get("dispatched") or {}
    attention = (entry.get("definition") or {}).get("attention")
    return {
        "picture": _pictures(attention, lengths[-1]) if attention and lengths else [],
        "name": name,
        "definition": heatmap.definition_text(entry),
        "columns": [_label(column) for column in columns],
        "lines": lines,
        "rest": [(_label(key), _field(key, value)) for key, value in rest.items() if _field(key, value)],
        "dispatched": plain(dispatched) if dispatched else "",
        "per_length": bool(entry.get("per_length")),
    }


def _pictures(attention: str, tokens: int) -> list[dict[str, Any]]:
    try:
        return silhouettes(attention, tokens)
    except ValueError as error:
        # A run may use a pattern of the user's own that this process has not loaded; its numbers are still good.
        logger.warning("no picture of %s: %s", attention, error)
        return []


def _layer(layer: Mapping[str, Any], columns: Sequence[str]) -> tuple[str, ...]:
    return tuple(_field(column, layer.get(column)) for column in columns)


def _label(name: str) -> str:
    return "KV bytes a token" if name == "kv_bytes" else name.replace("_", " ")


def _field(name: str, value: Any) -> str:
    if value is None:
        return "unbounded" if name == "reach" else ""
    return plain(value)
