"""The report page: from a summary and its rows to one self-contained HTML file.

Everything is worked out here and handed to the template as plain text and numbers; the template escapes all of it,
since answers come from a model and names from a user.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from itertools import groupby
from typing import Any

from hf_longctx.measure import heatmap
from hf_longctx.measure.curves import PLOT, curves, interval, percent, pooled_cell
from hf_longctx.measure.finding import effective_text, finding
from hf_longctx.measure.heatmap import depth_label, length_label
from hf_longctx.measure.silhouette import silhouettes
from hf_longctx.measure.stats import RULES

logger = logging.getLogger(__name__)

MAX_SHOWN = 40
"""Failures and invalid probes shown per variant; the rest are counted and stay in ``rows.jsonl``."""


def render(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Render the page of a run.

    Args:
        summary: A summary as in ``summary.json``; parts that a young or killed run lacks are left out of the page.
        rows: The rows of the run.

    Returns:
        An HTML document that needs no other file and no network.

    Raises:
        ImportError: jinja2 is not installed.
    """
    return fill("report.html.j2", **view(summary, rows))


def fill(name: str, **values: Any) -> str:
    """Fill a template of this package; all values are escaped.

    Args:
        name: file name of the template.
        **values: what it shows; the style sheet comes as `css`.

    Raises:
        ImportError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise ImportError('a page needs jinja2: pip install "hf_longctx[report]"') from error
    templates = files("hf_longctx.measure").joinpath("templates")
    source = templates.joinpath(name).read_text(encoding="utf-8")
    # The style sheet is ours, the one text that is not escaped.
    css = Markup(templates.joinpath("report.css").read_text(encoding="utf-8"))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source).render(css=css, **values)


def view(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Everything the template shows, as text, numbers and colours.

    Args:
        summary: As for `render`.
        rows: As for `render`.

    Returns:
        The template's variables by name.
    """
    variants: Mapping[str, Mapping[str, Any]] = summary["variants"]
    lengths, depths = heatmap.grid(summary)
    measured = sum(len(entry["cells"]) for entry in variants.values())
    planned = len(lengths) * len(depths) * len(variants)
    settings = summary.get("settings") or {}
    haystack = summary.get("haystack") or {}
    return {
        "model": str(summary.get("model") or "unnamed model"),
        "finding": finding(summary),
        "probes": sum(part["n"] for entry in variants.values() for part in entry["lengths"]),
        "variant_count": len(variants),
        "length_labels": [length_label(length) for length in lengths],
        "depth_count": len(depths),
        "unfinished": (measured, planned) if measured < planned else None,
        "doubted": [(name, entry["control"]["note"]) for name, entry in variants.items() if _doubted(entry)],
        "shared": settings.get("needles") == "shared",
        "single": settings.get("needles") == "single",
        "haystack": str(haystack.get("label") or haystack.get("name") or ""),
        "unique_share": percent(haystack.get("unique_share")),
        "scale": [heatmap.colour(stop / 8) for stop in range(9)],
        "maps": [_map(name, entry, lengths, depths) for name, entry in variants.items()],
        "plot": PLOT,
        "curves": curves(variants),
        "rules": [_rule(rule, variants, lengths) for rule in RULES],
        "failures": _by_variant(rows, variants, lambda r: r["outcome"] == "miss" and r.get("kind") != "control"),
        "invalid": _by_variant(rows, variants, lambda r: r["outcome"] == "invalid"),
        "controls": [(name, entry["control"]) for name, entry in variants.items()],
        "plans": [_plan(name, entry, lengths) for name, entry in variants.items()],
        "costs": [_cost(name, entry) for name, entry in variants.items()],
        "facts": _facts(summary),
        "command": str(summary.get("command") or ""),
    }


def _doubted(entry: Mapping[str, Any]) -> bool:
    return entry["control"]["trusted"] is False


def _map(name: str, entry: Mapping[str, Any], lengths: Sequence[int], depths: Sequence[float]) -> dict[str, Any]:
    """One heatmap as a table: a row a depth, a column a length."""
    claimed = entry.get("claimed")
    boundary = heatmap.claimed_boundary(claimed, lengths)
    cells = {(cell["length"], cell["depth"]): cell for cell in entry["cells"]}
    pooled = {part["length"]: part for part in entry["lengths"]}
    if claimed is None:
        claim = "claimed length unknown"
    else:
        claim = f"claims {length_label(claimed)}" + ("" if boundary is not None else ", beyond the tested lengths")
    return {
        "name": name,
        "definition": heatmap.definition_text(entry),
        "claim": claim,
        "lengths": [length_label(length) for length in lengths],
        "boundary": boundary,
        "lines": [
            {
                "depth": depth_label(depth),
                "cells": [_cell(cells.get((length, depth)), length, depth) for length in lengths],
            }
            for depth in depths
        ],
        "pooled": [pooled_cell(pooled.get(length), length) for length in lengths],
    }


def _cell(cell: Mapping[str, Any] | None, length: int, depth: float) -> dict[str, Any]:
    where = f"{length_label(length)} at {depth_label(depth)}"
    if cell is None or not cell["n"]:
        why = "not measured" if cell is None else f"{cell['invalid']} invalid, none scored"
        return {"text": "", "fill": None, "ink": None, "title": f"{where}: {why}"}
    fill = heatmap.colour(cell["recall"])
    return {
        "text": f"{cell['hits']}/{cell['n']}",
        "fill": fill,
        "ink": heatmap.ink(fill),
        "title": f"{where}: {cell['hits']} of {cell['n']} found, {interval(cell)}",
    }


def _rule(rule: str, variants: Mapping[str, Mapping[str, Any]], lengths: Sequence[int]) -> dict[str, Any]:
    share = percent(RULES[rule].share)
    own = f"{share} of the variant's own recall at its shortest length, as in NoLiMa"
    lines = []
    for name, entry in variants.items():
        found = entry["effective"][rule]
        calls = []
        for length in lengths:
            call = found["verdicts"].get(str(length), "")
            extra = found["needed"].get(str(length))
            calls.append({"call": call, "extra": extra})
        claimed = entry.get("claimed")
        lines.append(
            {
                "name": name,
                "claimed": length_label(claimed) if claimed else "unknown",
                "threshold": percent(found["threshold"]),
                "effective": effective_text(found).split(", +")[0],
                "proven": found["length"] is not None,
                "calls": calls,
            }
        )
    text = own if RULES[rule].relative else f"a recall of {share}, as in RULER"
    return {"name": rule, "text": text, "lines": lines}


def _by_variant(rows: Iterable[Mapping[str, Any]], variants: Iterable[str], keep: Any) -> list[dict[str, Any]]:
    kept = [row for row in rows if keep(row)]
    groups = []
    for name in variants:
        own = sorted(
            (row for row in kept if row["variant"] == name),
            key=lambda row: (row["length"], -1 if row["depth"] is None else row["depth"], row.get("trial", 0)),
        )
        if own:
            shown = [_probe(row) for row in own[:MAX_SHOWN]]
            groups.append({"name": name, "total": len(own), "rows": shown, "more": max(0, len(own) - MAX_SHOWN)})
    return groups


def _probe(row: Mapping[str, Any]) -> dict[str, Any]:
    context = row.get("context") or {}
    answer = str(row.get("answer") or "").strip()
    return {
        "where": length_label(int(row["length"]))
        + (f" at {depth_label(row['depth'])}" if row["depth"] is not None else ""),
        "trial": int(row.get("trial", 0)) + 1,
        "kind": str(row.get("kind", "needle")),
        "reason": str(row.get("reason") or ""),
        "question": str(row.get("question") or ""),
        "expected": str(row.get("expected") or ""),
        "answer": answer if len(answer) <= 240 else answer[:240] + "…",
        "before": str(context.get("before") or ""),
        "needle": str(context.get("needle") or ""),
        "after": str(context.get("after") or ""),
    }


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
        for shown, group in groupby([_plan_line(layer, columns) for layer in own]):
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
        "dispatched": _plain(dispatched) if dispatched else "",
        "per_length": bool(entry.get("per_length")),
    }


def _pictures(attention: str, tokens: int) -> list[dict[str, Any]]:
    try:
        return silhouettes(attention, tokens)
    except ValueError as error:
        # A run may use a pattern of the user's own that this process has not loaded; its numbers are still good.
        logger.warning("no picture of %s: %s", attention, error)
        return []


def _plan_line(layer: Mapping[str, Any], columns: Sequence[str]) -> tuple[str, ...]:
    return tuple(_field(column, layer.get(column)) for column in columns)


def _label(name: str) -> str:
    return "KV bytes a token" if name == "kv_bytes" else name.replace("_", " ")


def _field(name: str, value: Any) -> str:
    if value is None:
        return "unbounded" if name == "reach" else ""
    return _plain(value)


def _cost(name: str, entry: Mapping[str, Any]) -> dict[str, str]:
    prefill = entry.get("prefill") or {}
    spent, saved = prefill.get("spent"), prefill.get("saved")
    factor = f"{(spent + saved) / spent:.1f} times fewer" if spent and saved else ""
    seconds = entry.get("seconds")
    return {
        "name": name,
        "spent": "" if spent is None else f"{spent:,}",
        "saved": "" if saved is None else f"{saved:,}",
        "factor": factor,
        "seconds": "" if seconds is None else f"{seconds:,.0f} s",
    }


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    groups = []
    for title, key in (("Versions", "versions"), ("Hardware", "hardware"), ("Settings", "settings")):
        found = summary.get(key) or {}
        told = {k: _plain(v, k) for k, v in found.items() if v not in (None, "", {}, [])}
        # Package names keep their underscores, field names read better without; a byte count is told in GiB.
        items = [(k if key == "versions" else k.removesuffix("_bytes").replace("_", " "), v) for k, v in told.items()]
        if key == "settings" and summary.get("seed") is not None and "seed" not in found:
            items.insert(0, ("seed", str(summary["seed"])))
        if summary.get("started") and key == "hardware":
            items.append(("started", str(summary["started"])))
        if items:
            groups.append((title, items))
    return groups


def _plain(value: Any, key: str = "") -> str:
    """A JSON value as a reader would write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and ("memory" in key or "bytes" in key):
        return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value:,} bytes"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_plain(v, str(k))}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value)
