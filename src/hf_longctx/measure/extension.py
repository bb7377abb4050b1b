"""An extended model's record, as ``extend`` writes it, told as a part of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from .heatmap import length_label

RECORD = "extend.json"
"""The file that makes a folder an extended model."""


def summary(record: Mapping[str, Any], card: str) -> dict[str, Any]:
    """What the page of an extended model tells beside its needle test.

    Args:
        record: as in ``extend.json``, of a run that may still go on.
        card: its model card; empty for none yet.

    Returns:
        ``model``, ``variants`` (those that were measured, with the window that each is for), ``damage`` (by variant
        and position, as `damage.summarise_damage` gives it), ``readable`` (tokens that the base model is for),
        ``stages`` (with the ``log`` of their steps), ``settings`` and ``card``.

    Raises:
        KeyError: it is no such record.
    """
    settings = record["settings"]
    planned: Sequence[Mapping[str, Any]] = settings["stages"]
    window, readable = planned[-1]["window"], record.get("readable_length")
    measured: Mapping[str, Sequence[Mapping[str, Any]]] = record.get("perplexity") or {}
    first = next(iter(measured), None)
    return {
        "model": record.get("base_model") or PurePath(settings["model"]).name,
        "variants": {name: {"claimed": readable if name == first else window} for name in measured},
        "damage": measured,
        "readable": readable,
        "stages": record.get("stages") or [{**one, "log": []} for one in planned],
        "settings": {key: value for key, value in settings.items() if key not in ("stages", "model")},
        "card": card,
    }


def line(found: Mapping[str, Any]) -> str:
    """What the extension cost within the old window and gained beyond it, in a sentence.

    Args:
        found: what `summary` gave.

    >>> def row(start, perplexity, ratio, kl):
    ...     return {"start": start, "stop": start + 8192, "perplexity": perplexity, "ratio": ratio, "kl": kl}
    >>> rows = {"base": [row(0, 20.0, None, None), row(8192, 90.0, None, None)],
    ...         "trained": [row(0, 20.4, 1.02, 0.01), row(8192, 23.0, 0.26, None)]}
    >>> old, new = line({"damage": rows, "readable": 8192}).split("; ")
    >>> old
    'Perplexity at the end of the old window, to 8K: base 20, trained 20.4 (KL 0.01)'
    >>> new
    'at the end of what was read, to 16K: base 90, trained 23.'
    """
    damage, readable = found["damage"], found["readable"]
    first: Sequence[Mapping[str, Any]] = next(iter(damage.values()), [])
    if not first:
        return ""
    inside = [index for index, one in enumerate(first) if readable and one["stop"] <= readable]
    ends = {"at the end of the old window": inside[-1]} if inside else {}
    if len(first) - 1 not in ends.values():
        ends["at the end of what was read"] = len(first) - 1
    told = []
    for where, index in ends.items():
        here = [(name, rows[index]) for name, rows in damage.items() if index < len(rows)]
        told.append(f"{where}, to {length_label(first[index]['stop'])}: {', '.join(_figure(*one) for one in here)}")
    return f"Perplexity {'; '.join(told)}."


def _figure(name: str, row: Mapping[str, Any]) -> str:
    kl = row.get("kl")
    return f"{name} {row['perplexity']:.3g}" + ("" if kl is None else f" (KL {kl:.2g})")
