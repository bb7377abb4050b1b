"""Numbers as text, as the sections write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hf_longctx.measure.heatmap import length_label


def percent(share: float | None) -> str:
    """A share in per cent, three digits; empty for None.

    Examples:
        >>> percent(0.856), percent(1.0), percent(None)
        ('85.6%', '100%', '')
    """
    return "" if share is None else f"{100 * share:.3g}%"


def interval(part: Mapping[str, Any]) -> str:
    """The score of a cell or a length with its 95% interval, in words."""
    return f"{percent(part['score'])}, 95% interval {percent(part['low'])} to {percent(part['high'])}"


def scored(part: Mapping[str, Any] | None, length: int) -> dict[str, str]:
    """The score at one length, and the same with its interval for hovering and screen readers.

    Args:
        part: one of a variant's ``lengths``, or None where it has none.
        length: tokens.

    Returns:
        ``{"text", "title"}``: hits of n where probes are counted, else the mean score.
    """
    if part is None or not part["n"]:
        return {"text": "", "title": f"{length_label(length)}: not measured"}
    if "hits" in part:
        said = f"{part['hits']} of {part['n']} found"
        return {
            "text": f"{part['hits']}/{part['n']}",
            "title": f"{length_label(length)}, all depths: {said}, {interval(part)}",
        }
    trials = f"{part['n']} trial{'s' if part['n'] != 1 else ''}"
    return {"text": percent(part["score"]), "title": f"{length_label(length)}, {trials}: {interval(part)}"}


def size(count: float | None) -> str:
    """Bytes, three digits and a binary unit.

    Examples:
        >>> size(3 << 30), size(1536), size(None)
        ('3 GiB', '1.5 KiB', '')
    """
    if not count:
        return "" if count is None else "0"
    units = iter(("bytes", "KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while count >= 1024 and unit != "TiB":
        count, unit = count / 1024, next(units)
    return f"{round(count, 2 if count < 10 else 1 if count < 100 else 0):g} {unit}"


def number(value: float | None) -> str:
    """Three digits, never in powers of ten.

    Examples:
        >>> number(0.01234), number(1234.5), number(None)
        ('0.0123', '1,234', '')
    """
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{float(f'{value:.3g}'):,g}"


def seconds(value: float | None) -> str:
    """A time.

    Examples:
        >>> seconds(0.0213), seconds(75.2), seconds(None)
        ('21.3 ms', '75.2 s', '')
    """
    if value is None:
        return ""
    return f"{number(1000 * value)} ms" if 0 < value < 1 else f"{number(value)} s"


def plain(value: Any, key: str = "") -> str:
    """A JSON value as a reader would write it.

    Examples:
        >>> plain({"memory_bytes": 8 << 30, "cuda": None})
        'memory_bytes 8.0 GiB, cuda null'
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and ("memory" in key or "bytes" in key):
        return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value:,} bytes"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {plain(v, str(k))}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value)
