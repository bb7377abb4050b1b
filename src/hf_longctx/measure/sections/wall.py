"""The memory wall of the run's model and its variants: by formula, from the configuration alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hf_longctx.hf.architecture import Architecture, architecture
from hf_longctx.hf.saving import take_plan
from hf_longctx.measure.cost import EAGER, method_of
from hf_longctx.measure.cost_model import FLASH, STANDARD, Method, cost
from hf_longctx.measure.heatmap import length_label
from hf_longctx.measure.machines import Machine
from hf_longctx.measure.plot import PLOT, across, dash, legend, length_ticks, marker, path, ticks, upwards
from hf_longctx.measure.public_models import known_config
from hf_longctx.measure.runs import Run
from hf_longctx.measure.variants import AS_LOADED, Variant
from hf_longctx.measure.wall import LENGTHS, wall

from .words import size

TITLE = "The memory wall, by formula"

CHARTS = {
    "peak_bytes": "Memory, prompt read at once",
    "chunked_peak_bytes": "Memory, prompt read in chunks",
    "cache_bytes": "Cache and states after the prompt",
}
"""Key of a row of `wall` to the heading of its chart."""

ITEMSIZE = 2
"""Bytes of a number: bfloat16."""


def build(run: Run, machine: Machine) -> dict[str, Any] | None:
    """Charts and a table for each model of the run whose configuration is on this computer."""
    models = [view for name in dict.fromkeys(part.model for part in run.parts) if (view := _view(run, name, machine))]
    return {"plot": PLOT, "models": models, "named": len(models) > 1, "machine": machine.name} if models else None


def methods(
    run: Run, model: str, sizes: Architecture, saved: Mapping[str, str] | None = None
) -> list[tuple[str, Method]]:
    """Standard and flash attention, and the variants that differ from these in memory; those that do not share a line.

    Args:
        run: of one or more models.
        model: whose parts are looked at.
        sizes: of that model. A variant that does not fit them, or whose pattern is unknown here, is left out.
        saved: what the model's folder was saved patched with, which is the variant `as-loaded`.

    Returns:
        A label and a method each.
    """
    found: list[tuple[list[str], Method]] = [(["standard"], STANDARD), (["flash"], FLASH)]
    for part in run.parts:
        for name, entry in part.variants.items() if part.model == model else ():
            definition = entry.get("definition") or (saved or {} if name == AS_LOADED else {})
            method = _method(name, definition, sizes)
            if method is None:
                continue
            names = next((names for names, one in found if replace(one, name=method.name) == method), None)
            if names is None:
                found.append(([name], method))
            elif name not in names:
                names.append(name)
    return [(", ".join(names), method) for names, method in found]


def _method(name: str, definition: Mapping[str, str], sizes: Architecture) -> Method | None:
    if name == EAGER:
        return STANDARD
    try:
        method = method_of(Variant(name, **definition))
        cost(sizes, method, 1, count=False)
    except (ValueError, TypeError):
        return None
    return method


def _view(run: Run, model: str, machine: Machine) -> dict[str, Any] | None:
    config = known_config(model)
    if config is None:
        return None
    try:
        saved = take_plan(config) if getattr(config, "longctx", None) else {}
        sizes = architecture(config)
    except (ValueError, AttributeError):
        return None  # of no causal language model, or with a plan of another version: the page does without
    compared = methods(run, model, sizes, saved)
    document = wall(sizes, [method for _, method in compared], machine=machine, itemsize=ITEMSIZE, count=False)
    names = [name for name, _ in compared]
    entries = [entry for part in run.parts if part.model == model for entry in part.variants.values()]
    claimed = [sizes.max_positions, *(entry.get("claimed") for entry in entries)]
    claims = {int(claim): length_label(claim) for claim in claimed if claim}
    return {
        "model": model,
        "parameters": f"{sizes.parameters:,}",
        "chunk": length_label(document["chunk"]),
        "legend": legend(names),
        "charts": [_chart(key, title, document, names, claims, machine) for key, title in CHARTS.items()],
        "rows": [_line(name, entry) for name, entry in zip(names, document["methods"])],
        "lengths": [length_label(n) for n in _told(document)],
    }


def _chart(
    key: str,
    title: str,
    document: Mapping[str, Any],
    names: Sequence[str],
    claims: Mapping[int, str],
    machine: Machine,
) -> dict[str, Any]:
    curves = [[(row["tokens"], row[key]) for row in method["rows"]] for method in document["methods"]]
    x, y = across(LENGTHS), upwards([machine.memory, *(value for curve in curves for _, value in curve)])
    return {
        "title": title,
        "ticks": length_ticks(x, LENGTHS),
        "grid": ticks(y, size, binary=True),
        "series": [_series(i, name, curve, x, y) for i, (name, curve) in enumerate(zip(names, curves))],
        "failures": [],
        "limit": (y(machine.memory), machine.name),
        "claims": [(x(n), f"claims {text}") for n, text in claims.items() if LENGTHS[0] <= n <= LENGTHS[-1]],
        "summary": "; ".join(
            f"{name} fits to {_tokens(method['fits'][key])}" for name, method in zip(names, document["methods"])
        ),
    }


def _series(
    index: int,
    name: str,
    curve: Sequence[tuple[int, int]],
    x: Callable[[float], float],
    y: Callable[[float], float],
) -> dict[str, Any]:
    return {
        "colour": f"s{index % 7}",
        "dash": dash(index),
        "line": path((x(n), y(value)) for n, value in curve),
        "spread": [],
        "dots": [
            (marker(index, x(n), y(value), 2.5), f"{name} at {length_label(n)}: {size(value)}") for n, value in curve
        ],
        "model": "",
        "rings": [],
    }


def _told(document: Mapping[str, Any]) -> list[int]:
    """The lengths whose cache the table gives: every third."""
    return [row["tokens"] for row in document["methods"][0]["rows"]][1::3]


def _line(name: str, method: Mapping[str, Any]) -> dict[str, Any]:
    fits = {key: method["fits"][key] for key in CHARTS}
    return {
        "name": name,
        "fits": [(_tokens(count), "Infinity" if count is None else count) for count in fits.values()],
        "peaks": [(size(row["peak_bytes"]), row["peak_bytes"]) for row in method["rows"]][1::3],
    }


def _tokens(count: int | None) -> str:
    """Tokens rounded down to what people say.

    >>> _tokens(None), _tokens(140_000), _tokens(3 << 20), _tokens(900)
    ('any', '136K', '3M', '900')
    """
    if count is None:
        return "any"
    for unit, letter in ((1 << 20, "M"), (1 << 10, "K")):
        if count >= unit:
            whole = count / unit
            return f"{int(whole):,}{letter}" if whole >= 100 else f"{int(10 * whole) / 10:g}{letter}"
    return str(count)
