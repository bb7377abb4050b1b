"""Cost by length, measured and modelled: time to the first token, decoding speed, peak memory, cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_longctx.measure.finding import cost_line
from hf_longctx.measure.heatmap import length_label
from hf_longctx.measure.plot import PLOT, across, dash, legend, length_ticks, marker, path, ticks, upwards
from hf_longctx.measure.runs import Part, Row

from .words import number, seconds, size

TITLE = "What a length costs"

OUTCOMES = {
    "oom": "out of memory",
    "timeout": "out of time",
    "skipped": "not tried",
    "error": "failed",
}
"""What is said of a row that has no figures."""

SIGNS = {"oom": "m-4-4l8 8m0-8l-8 8", "timeout": "m-5.5 0h11m-5.5-5.5v11", "skipped": "m-5 0h10"}
"""SVG path of the sign for such a row, about the point before it: a cross, a plus, a stroke."""

_EDGE = 6
"""Height of a sign that has no figure to stand at: the upper edge."""


@dataclass(frozen=True)
class Chart:
    """One quantity by length.

    Attributes:
        title: heading of the chart.
        measured: key of a row with a number, or with `median`, `low` and `high`.
        modelled: the figure by formula, of a row and of the bytes that its variant had in memory before any prompt,
            None where nothing was measured; None where there is none.
        say: a value as text.
        failures: whether rows without figures are marked where there is no figure by formula, as beyond the upper
            edge.
    """

    title: str
    measured: str
    modelled: Callable[[Row, int | None], float | None]
    say: Callable[[float | None], str]
    failures: bool = False

    @property
    def binary(self) -> bool:
        """Whether it counts bytes."""
        return self.say is size


def modelled_peak(row: Row, base: int | None) -> float | None:
    """What was in memory before the prompt, and what the model says that the prefill adds.

    Where the variant was never measured, so that this is not known, the weights stand for it.

    >>> modelled_peak({"modelled_working_bytes": 20, "modelled_peak_bytes": 90}, 100)
    120
    >>> modelled_peak({"modelled_working_bytes": 20, "modelled_peak_bytes": 90}, None), modelled_peak({}, 100)
    (90, None)
    """
    working = row.get("modelled_working_bytes")
    return row.get("modelled_peak_bytes") if base is None or working is None else base + working


def modelled_cache(row: Row, base: int | None) -> float | None:
    """What `describe` said of the cache of a measured row, the formula of another."""
    return row.get("described_cache_bytes", row.get("modelled_cache_bytes"))


def ended(row: Row, say: Callable[[int], str] = size) -> str:
    """How a row without figures ended, and the memory that the cost model says it takes: weights and the prompt's.

    >>> ended({"outcome": "oom", "modelled_peak_bytes": 5 << 30}), ended({"outcome": "error"})
    ('out of memory; model says 5 GiB', 'failed')
    """
    said, peak = str(OUTCOMES.get(row["outcome"], row["outcome"])), row.get("modelled_peak_bytes")
    return said if peak is None else f"{said}; model says {say(peak)}"


CHARTS = (
    Chart("Time to the first token", "ttft_seconds", lambda row, base: None, seconds, failures=True),
    Chart("Decoding at that depth, tokens a second", "decode_tokens_per_second", lambda row, base: None, number),
    Chart("Peak memory of the process", "peak_bytes", modelled_peak, size, failures=True),
    Chart("Cache after the last token", "cache_bytes", modelled_cache, size),
)


def build(part: Part, overlay: Sequence[Any]) -> dict[str, Any] | None:
    """Charts with a line a variant, and every figure in a table."""
    if part.kind != "cost":
        return None
    names = list(part.variants)
    rows = sorted(part.rows, key=lambda row: (row["length"], names.index(row["variant"])))
    charts = [drawn for chart in CHARTS if (drawn := _chart(chart, rows, names)) is not None]
    ended = {row["outcome"] for row in rows}
    return {
        "plot": PLOT,
        "finding": cost_line(rows),
        "legend": legend(names),
        "charts": charts,
        "modelled": any(one["rings"] for chart in charts for one in chart["series"]),
        "signs": [(f"M14 7{SIGNS[outcome]}", OUTCOMES[outcome]) for outcome in SIGNS if outcome in ended],
        "rows": [_line(row) for row in rows],
    }


def _done(row: Row) -> bool:
    return row["outcome"] == "ok"


def spread(value: Any) -> tuple[float, float, float] | None:
    """Median and quartiles of a figure; of a plain number itself; None for None.

    >>> spread({"median": 2, "low": 1, "high": 3}), spread(4), spread(None)
    ((2, 1, 3), (4, 4, 4), None)
    """
    if value is None:
        return None
    return (value["median"], value["low"], value["high"]) if isinstance(value, Mapping) else (value, value, value)


def _chart(chart: Chart, rows: Sequence[Row], names: Sequence[str]) -> dict[str, Any] | None:
    points = {(row["variant"], row["length"]): spread(row[chart.measured]) for row in rows if _done(row)}
    known = {place: found for place, found in points.items() if found is not None}
    if not known:
        return None
    bases = {row["variant"]: row.get("baseline_bytes") for row in reversed(rows) if _done(row)}
    said = {(row["variant"], row["length"]): chart.modelled(row, bases.get(row["variant"])) for row in rows}
    models = {place: value for place, value in said.items() if value is not None}
    values = [value for found in known.values() for value in found] + list(models.values())
    lengths = sorted({row["length"] for row in rows})
    x, y = across(lengths), upwards(values)
    return {
        "title": chart.title,
        "ticks": length_ticks(x, lengths),
        "grid": ticks(y, chart.say, binary=chart.binary),
        "series": [_series(chart, i, name, known, models, x, y) for i, name in enumerate(names)],
        "failures": _failures(chart, rows, names, models, x, y),
        "summary": "; ".join(
            f"{name} at {length_label(length)} {chart.say(found[0])}" for (name, length), found in known.items()
        ),
    }


def _series(
    chart: Chart,
    index: int,
    name: str,
    known: Mapping[tuple[str, int], tuple[float, float, float]],
    models: Mapping[tuple[str, int], float],
    x: Callable[[float], float],
    y: Callable[[float], float],
) -> dict[str, Any]:
    own = [(length, found) for (variant, length), found in known.items() if variant == name]
    by_model = [(n, value) for (variant, n), value in models.items() if variant == name]
    return {
        "colour": f"s{index % 7}",
        "dash": dash(index),
        "line": path((x(length), y(found[0])) for length, found in own),
        "spread": [(x(length), y(low), y(high)) for length, (_, low, high) in own if high > low],
        "dots": [
            (marker(index, x(length), y(found[0])), f"{name} at {length_label(length)}: {chart.say(found[0])}")
            for length, found in own
        ],
        "model": path((x(n), y(value)) for n, value in by_model),
        "rings": [
            (x(n), y(value), f"{name} at {length_label(n)}, by formula: {chart.say(value)}") for n, value in by_model
        ],
    }


def _failures(
    chart: Chart,
    rows: Sequence[Row],
    names: Sequence[str],
    models: Mapping[tuple[str, int], float],
    x: Callable[[float], float],
    y: Callable[[float], float],
) -> list[dict[str, Any]]:
    """Signs at what the formula says, else at the upper edge, side by side where several failed at one length."""
    failed = [row for row in rows if row["outcome"] in SIGNS]
    found = []
    for row in failed:
        value = models.get((row["variant"], row["length"]))
        beside = [one["variant"] for one in failed if one["length"] == row["length"]]
        shift = 11 * (beside.index(row["variant"]) - (len(beside) - 1) / 2) if value is None else 0
        if value is None and not (chart.failures and row["outcome"] != "skipped"):
            continue
        height = _EDGE if value is None else y(value)
        found.append(
            {
                "path": f"M{x(row['length']) + shift:g} {height:g}{SIGNS[row['outcome']]}",
                "colour": f"s{names.index(row['variant']) % 7}",
                "title": f"{row['variant']} at {length_label(row['length'])}: {ended(row)}",
            }
        )
    return found


def _line(row: Row) -> dict[str, Any]:
    head = {"name": row["variant"], "length": length_label(row["length"]), "length_value": row["length"]}
    if not _done(row):
        known = {key: row.get(key) for key in ("modelled_working_bytes", "modelled_cache_bytes")}
        said = {key: {"text": size(value), "value": value} for key, value in known.items() if value is not None}
        return head | {"failure": ended(row), "reason": str(row.get("reason") or ""), "said": said}
    timed = {
        "first": ("ttft_seconds", seconds),
        "prefill": ("prefill_tokens_per_second", number),
        "decode": ("decode_tokens_per_second", number),
    }
    cells = {}
    for key, (field, say) in timed.items():
        middle, low, high = spread(row[field]) or (None, 0.0, 0.0)
        about = f"±{50 * (high - low) / middle:.0f}%" if middle and high > low else ""
        cells[key] = {"text": say(middle), "about": about, "value": middle or 0}
    for key in ("peak_bytes", "working_bytes", "modelled_working_bytes", "cache_bytes"):
        cells[key] = {"text": size(row.get(key)), "about": "", "value": row.get(key) or 0}
    described = row.get("described_cache_bytes")
    if described is not None and described != row.get("cache_bytes"):
        cells["cache_bytes"]["about"] = f"by formula {size(described)}"
    return head | {"failure": "", "cells": cells}
