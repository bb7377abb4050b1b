"""Effective against claimed length, under each rule, with the verdict on every length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_longctx.measure.finding import unsettled_text, verdict_line
from hf_longctx.measure.heatmap import length_label
from hf_longctx.measure.runs import Part
from hf_longctx.measure.stats import RULES

from .words import percent

TITLE = "Effective against claimed"


def build(part: Part, overlay: Sequence[Any]) -> dict[str, Any] | None:
    """A table a rule: a row a variant, a column a length."""
    if not part.recall or not part.lengths:
        return None
    judged = {name: entry for name, entry in part.variants.items() if entry["effective"]}
    if not judged:
        return None
    # Every rung, also those that nobody was asked at.
    rungs = {int(at) for entry in judged.values() for one in entry["effective"].values() for at in _unsettled(one)}
    lengths = sorted({*part.lengths, *rungs})
    return {
        "lengths": [length_label(length) for length in lengths],
        "climbed": part.kind == "tasks",
        "rules": [_rule(rule, judged, lengths) for rule in RULES],
    }


def _unsettled(found: Mapping[str, Any]) -> Mapping[str, str]:
    return found.get("unsettled") or {}  # runs of an earlier version have none


def _rule(rule: str, variants: Mapping[str, Mapping[str, Any]], lengths: Sequence[int]) -> dict[str, Any]:
    share = percent(RULES[rule].share)
    own = f"{share} of the variant's own score at its shortest length, as in NoLiMa"
    return {
        "name": rule,
        "text": own if RULES[rule].relative else f"a score of {share}, as in RULER",
        "lines": [_line(name, entry, rule, lengths) for name, entry in variants.items()],
    }


def _line(name: str, entry: Mapping[str, Any], rule: str, lengths: Sequence[int]) -> dict[str, Any]:
    found, claimed = entry["effective"][rule], entry.get("claimed")
    needed = found.get("needed") or {}
    curve = (found.get("curve") or {}).get("length")
    share = found["low"] / claimed if found["low"] and claimed else None
    return {
        "name": name,
        "claimed": length_label(claimed) if claimed else "unknown",
        "claimed_value": claimed or 0,
        "threshold": percent(found["threshold"]),
        "effective": ends(found),
        "effective_value": found["low"] or 0,
        "proven": found["low"] is not None,
        "share": percent(share),
        "curve": f"about {curve:,.0f}" if curve else "",
        "sentence": verdict_line(name, entry, rule),
        "unsettled": unsettled_text(found),
        "calls": [
            {
                "call": found["verdicts"].get(str(length), "not asked" if str(length) in _unsettled(found) else ""),
                "extra": needed.get(str(length)),
            }
            for length in lengths
        ],
    }


def ends(found: Mapping[str, Any]) -> str:
    """The interval of an effective length in a few words.

    Args:
        found: one rule's part of a summary.

    >>> ends({"low": 2048, "high": 8192, "verdicts": {}}), ends({"low": None, "high": 1024, "verdicts": {}})
    ('2K to below 8K', 'below 1K')
    >>> ends({"low": None, "high": None, "verdicts": {"1024": "undecided"}})
    'undecided'
    """
    low, high = found["low"], found["high"]
    if low is None and high is None:
        return "undecided" if found["verdicts"] else "not measured"
    if high is None:
        return f"at least {length_label(low)}"
    return f"below {length_label(high)}" if low is None else f"{length_label(low)} to below {length_label(high)}"
