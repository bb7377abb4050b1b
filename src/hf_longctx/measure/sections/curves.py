"""Recall by length with its interval, the claimed length, and published scores beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_longctx.measure.heatmap import length_label
from hf_longctx.measure.plot import PLOT, Scale, across, length_ticks, path
from hf_longctx.measure.published import label
from hf_longctx.measure.runs import Part

from .words import percent, scored

TITLE = "Recall by length"


def build(part: Part, overlay: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """A panel a variant, on shared axes; lengths on a logarithmic scale."""
    if not part.recall:
        return None
    variants = part.variants
    tested = sorted({one["length"] for entry in variants.values() for one in entry["lengths"] if one["n"]})
    if not tested:
        return None
    published = sorted({length for row in overlay for length in row["scores"]})
    seen = [*tested, *published]
    # A claim far beyond the tested lengths would squeeze the curve into a corner; it is then told in words.
    claims = [entry["claimed"] for entry in variants.values() if entry.get("claimed")]
    shown = [claim for claim in claims if min(seen) <= claim <= 2 * max(seen)]
    x, y = across([*seen, *shown]), Scale(0, 1, PLOT["bottom"], PLOT["top"])
    reference = "stock" if "stock" in variants else next(iter(variants))
    common = {
        "ticks": length_ticks(x, seen),
        "grid": [(y(share), percent(share)) for share in (0.0, 0.25, 0.5, 0.75, 1.0)],
        "overlay": [
            {
                "label": _published(row),
                "line": path((x(length), y(score / 100)) for length, score in sorted(row["scores"].items())),
                "dash": ("2 4", "9 5", "9 4 2 4")[i % 3],
            }
            for i, row in enumerate(overlay)
        ],
    }
    other = path((x(one["length"]), y(one["score"])) for one in variants[reference]["lengths"] if one["n"])
    panels = [
        _panel(name, entry, x, y, shown) | common | {"reference": None if name == reference else (reference, other)}
        for name, entry in variants.items()
    ]
    kind = "Wilson interval" if part.kind == "needle" else "confidence sequence, valid whenever the run was stopped"
    return {"plot": PLOT, "panels": panels, "band": kind, "pooled": part.kind == "needle"}


def _panel(name: str, entry: Mapping[str, Any], x: Scale, y: Scale, shown: Sequence[int]) -> dict[str, Any]:
    parts = [part for part in entry["lengths"] if part["n"]]
    claim = entry.get("claimed")
    band = [(x(part["length"]), y(part["low"])) for part in parts]
    band += [(x(part["length"]), y(part["high"])) for part in reversed(parts)]
    return {
        "name": name,
        "line": path((x(part["length"]), y(part["score"])) for part in parts),
        "band": path(band),
        # A single length has no area to fill: its interval is drawn as a bar.
        "bar": (x(parts[0]["length"]), y(parts[0]["low"]), y(parts[0]["high"])) if len(parts) == 1 else None,
        "dots": [(x(part["length"]), y(part["score"]), scored(part, part["length"])["title"]) for part in parts],
        "claim": (x(claim), f"claims {length_label(claim)}") if claim and claim in shown else None,
        "beyond": f"claims {length_label(claim)}" if claim and claim not in shown else None,
        "summary": "; ".join(scored(part, part["length"])["title"] for part in parts) or "not measured yet",
    }


def _published(row: Mapping[str, Any]) -> str:
    claim = f"claims {length_label(row['claimed'])}, " if row["claimed"] else ""
    return f"{label(row)} in {row['suite'].upper()}: {claim}effective {row['effective_text']}"
