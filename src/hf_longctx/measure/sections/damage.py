"""Damage at short context: perplexity, and divergence from the stock model, by position."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hf_longctx.measure.heatmap import length_label
from hf_longctx.measure.plot import PLOT, across, dash, legend, length_ticks, marker, path, ticks, upwards
from hf_longctx.measure.runs import EXTENSION, Part
from hf_longctx.measure.variants import STOCK

from .words import number

TITLE = "Damage by position"

_CHARTS = {"perplexity": "Perplexity", "kl": "KL divergence from {first}, nats a token"}


def build(part: Part, overlay: Sequence[Any]) -> dict[str, Any] | None:
    """A chart of each figure, a line a variant, and a table of both by position."""
    damage: Mapping[str, Sequence[Mapping[str, Any]]] = part.summary.get("damage") or {}
    names = [name for name, bins in damage.items() if bins]
    if not names:
        return None
    first = STOCK if STOCK in names or part.kind != EXTENSION else names[0]
    drawn = {key: _chart(key, title.format(first=first), damage, names) for key, title in _CHARTS.items()}
    bins = sorted({(one["start"], one["stop"]) for name in names for one in damage[name]})
    cells = {(name, one["start"], one["stop"]): one for name in names for one in damage[name]}
    return {
        "plot": PLOT,
        "legend": legend(names),
        "charts": [chart for chart in drawn.values() if chart is not None],
        "names": names,
        "first": first,
        "rows": [
            {
                "where": f"{length_label(start) if start else '0'} to {length_label(stop)}",
                "value": start,
                "cells": [_cell(cells.get((name, start, stop))) for name in names],
            }
            for start, stop in bins
        ],
    }


def _chart(
    key: str, title: str, damage: Mapping[str, Sequence[Mapping[str, Any]]], names: Sequence[str]
) -> dict[str, Any] | None:
    known = {name: [one for one in damage[name] if one.get(key) is not None] for name in names}
    values = [max(0.0, float(one[key])) for own in known.values() for one in own]
    if not values:
        return None
    stops = sorted({one["stop"] for own in known.values() for one in own})
    x, y = across(stops), upwards(values)
    return {
        "title": title,
        "ticks": length_ticks(x, stops),
        "grid": ticks(y, number),
        "series": [_series(key, i, name, known[name], x, y) for i, name in enumerate(names)],
        "failures": [],
        "summary": "; ".join(
            f"{name} to {length_label(one['stop'])} {number(one[key])}" for name, own in known.items() for one in own
        ),
    }


def _series(
    key: str,
    index: int,
    name: str,
    bins: Sequence[Mapping[str, Any]],
    x: Callable[[float], float],
    y: Callable[[float], float],
) -> dict[str, Any]:
    places = [(x(one["stop"]), y(max(0.0, one[key])), one) for one in bins]
    return {
        "colour": f"s{index % 7}",
        "dash": dash(index),
        "line": path((at, height) for at, height, _ in places),
        "spread": [],
        "dots": [
            (
                marker(index, at, height),
                f"{name}, {one['start']:,} to {one['stop']:,}, {one['tokens']:,} tokens: {number(one[key])}",
            )
            for at, height, one in places
        ],
        "model": "",
        "rings": [],
    }


def _cell(one: Mapping[str, Any] | None) -> dict[str, str]:
    if one is None:
        return {"perplexity": "", "ratio": "", "kl": "", "interval": ""}
    ratio, low, high = (one.get(key) for key in ("ratio", "kl_low", "kl_high"))
    return {
        "perplexity": number(one.get("perplexity")),
        "ratio": "" if ratio is None else f"{number(ratio)}x",
        "kl": number(one.get("kl")),
        "interval": "" if low is None else f"95% interval {number(low)} to {number(high)}",
    }
