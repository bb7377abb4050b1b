"""Recall by length as geometry for a small SVG plot."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from hf_longctx.measure.heatmap import length_label

PLOT: Mapping[str, int] = {"width": 360, "height": 216, "left": 40, "top": 14, "right": 346, "bottom": 184}
"""Size of a panel and the box of its axes, in SVG user units."""


def curves(variants: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Recall by length with its interval, a panel a variant, on shared axes; lengths on a log scale.

    Args:
        variants: As in a summary.

    Returns:
        Per variant what the template draws, in units of the plot; empty while nothing has been scored.
    """
    tested = sorted({part["length"] for entry in variants.values() for part in entry["lengths"] if part["n"]})
    if not tested:
        return []
    # A claim far beyond the tested lengths would squeeze the curve into a corner; it is then told in words.
    claims = [entry["claimed"] for entry in variants.values() if entry.get("claimed")]
    shown = [claim for claim in claims if tested[0] <= claim <= 2 * tested[-1]]
    first, last = math.log2(tested[0]), math.log2(max([*tested, *shown]))
    left, top, right, bottom = PLOT["left"], PLOT["top"], PLOT["right"], PLOT["bottom"]

    def x(tokens: float) -> float:
        share = 0.5 if last == first else (math.log2(tokens) - first) / (last - first)
        return round(left + 16 + share * (right - left - 32), 1)

    def y(recall: float) -> float:
        return round(bottom - recall * (bottom - top), 1)

    def path(points: Iterable[tuple[float, float]]) -> str:
        return " ".join(f"{x(tokens)},{y(share)}" for tokens, share in points)

    ticks: list[tuple[float, str]] = []
    for length in tested:
        if not ticks or x(length) - ticks[-1][0] >= 26:
            ticks.append((x(length), length_label(length)))
    reference = "stock" if "stock" in variants else next(iter(variants))
    other = [(part["length"], part["recall"]) for part in variants[reference]["lengths"] if part["n"]]
    panels = []
    for name, entry in variants.items():
        parts = [part for part in entry["lengths"] if part["n"]]
        claim = entry.get("claimed")
        band = [(part["length"], part["low"]) for part in parts]
        band += [(part["length"], part["high"]) for part in reversed(parts)]
        panels.append(
            {
                "name": name,
                "line": path((part["length"], part["recall"]) for part in parts),
                "band": path(band),
                # A single length has no area to fill: its interval is drawn as a bar.
                "bar": (x(parts[0]["length"]), y(parts[0]["low"]), y(parts[0]["high"])) if len(parts) == 1 else None,
                "dots": [
                    (x(part["length"]), y(part["recall"]), pooled_cell(part, part["length"])["title"])
                    for part in parts
                ],
                "reference": None if name == reference else (reference, path(other)),
                "claim": (x(claim), f"claims {length_label(claim)}") if claim and claim in shown else None,
                "beyond": f"claims {length_label(claim)}" if claim and claim not in shown else None,
                "ticks": ticks,
                "grid": [(y(share), percent(share)) for share in (0.0, 0.25, 0.5, 0.75, 1.0)],
                "summary": "; ".join(pooled_cell(part, part["length"])["title"] for part in parts)
                or "not measured yet",
            }
        )
    return panels


def percent(share: float | None) -> str:
    """A share in per cent, three digits; empty for None.

    Examples:
        >>> percent(0.856), percent(1.0), percent(None)
        ('85.6%', '100%', '')
    """
    return "" if share is None else f"{100 * share:.3g}%"


def interval(part: Mapping[str, Any]) -> str:
    """The recall of a cell or a length with its Wilson interval, in words."""
    return f"{percent(part['recall'])}, 95% interval {percent(part['low'])} to {percent(part['high'])}"


def pooled_cell(part: Mapping[str, Any] | None, length: int) -> dict[str, str]:
    """Hits of n at one length, all depths, and the same with its interval for hovering and screen readers.

    Args:
        part: One of a variant's ``lengths``, or None where it has none.
        length: Tokens.

    Returns:
        ``{"text", "title"}``.
    """
    if part is None or not part["n"]:
        return {"text": "", "title": f"{length_label(length)}: not measured"}
    title = f"{length_label(length)}, all depths: {part['hits']} of {part['n']} found, {interval(part)}"
    return {"text": f"{part['hits']}/{part['n']}", "title": title}
