"""Variants side by side on the same prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_longctx.measure.heatmap import length_label
from hf_longctx.measure.runs import Part, as_trials
from hf_longctx.measure.tally import pair

TITLE = "Is the difference more than chance?"


def build(part: Part, overlay: Sequence[Any]) -> dict[str, Any] | None:
    """Each variant against the first, by length."""
    names = list(part.variants)
    if not part.recall or len(names) < 2:
        return None
    rows, tasks = as_trials(part)
    seed = int(part.summary.get("seed") or 0)
    found = [pair(rows, names[0], other, tasks, seed=seed) for other in names[1:]]
    lines = [line(one["other"], entry) for one in found for entry in one["lengths"]]
    return {"first": names[0], "lines": lines} if lines else None


def line(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """One length of `tally.pair` as text, with the values to sort it by."""
    difference, low, high = (entry[key] for key in ("difference", "low", "high"))
    # With a single seed the bootstrap knows nothing.
    spread = difference is not None and (low, high) != (-1.0, 1.0)
    return {
        "name": name,
        "length": length_label(entry["length"]),
        "length_value": entry["length"],
        "prompts": entry["prompts"],
        "only_first": entry["only_first"],
        "only_other": entry["only_other"],
        "p": p_text(entry["p"]),
        "p_value": entry["p"],
        "sure": entry["p"] < 0.05,
        "difference": "" if difference is None else f"{100 * difference:+.3g} points",
        "difference_value": difference or 0.0,
        "interval": f"{100 * low:+.3g} to {100 * high:+.3g}" if spread else "",
    }


def p_text(p: float) -> str:
    """A p-value; tiny ones by their bound.

    >>> p_text(0.03125), p_text(1e-9), p_text(1.0)
    ('0.031', '< 0.0001', '1')
    """
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"
