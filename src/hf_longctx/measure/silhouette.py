"""The shape of an attention pattern at a real length, small enough for a page."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from hf_longctx.measure.heatmap import length_label

_SAMPLES = 8


def silhouettes(attention: str, tokens: int, cells: int = 48) -> list[dict[str, Any]]:
    """Draw the patterns of an attention text, one picture a pattern, as SVG paths.

    The tokens x tokens square is cut into cells x cells squares, and a square is filled where one of a few sampled
    queries in it may see one of a few sampled keys, the first key included so that sinks show. Nothing of the size
    of the square is built. Patterns by head are drawn for the first head.

    Args:
        attention: Text form of a pattern or of patterns by layer.
        tokens: Length to draw, the side of the square.
        cells: Squares a side.

    Returns:
        Per pattern ``{"label", "tokens", "cells", "path"}``; ``path`` is SVG path data in units of a square.

    Raises:
        ValueError: The text is no pattern.

    Examples:
        >>> found = silhouettes("window:1024", 4096, cells=4)[0]
        >>> found["label"], found["tokens"], found["path"]
        ('window:1024', '4K', 'M0 0h1v1h-1zM0 1h2v1h-2zM1 2h2v1h-2zM2 3h2v1h-2z')
    """
    from hf_longctx.patterns import Layers, parse

    found = parse(attention)
    named = list(found.plan) if isinstance(found, Layers) else [("", found)]
    cells = min(cells, tokens)
    pictures = []
    for selector, pattern in named:
        label = f"layers {selector}: {pattern}" if selector else str(pattern)
        path = _path(pattern, tokens, cells)
        pictures.append({"label": label, "tokens": length_label(tokens), "cells": cells, "path": path})
    return pictures


def _path(pattern: Any, tokens: int, cells: int) -> str:
    import torch

    within = torch.linspace(0, 1 - 1e-9, _SAMPLES, dtype=torch.float64)
    steps = (torch.arange(cells, dtype=torch.float64)[:, None] + within) * tokens / cells
    at = steps.long().clamp(max=tokens - 1).flatten()
    seen = pattern.allows(at[:, None], at[None, :], layer=0, head=0) & (at[None, :] <= at[:, None])
    filled = seen.expand(len(at), len(at)).view(cells, _SAMPLES, cells, _SAMPLES).any(3).any(1)
    parts = []
    for y, row in enumerate(filled.tolist()):
        x = 0
        for visible, run in groupby(row):
            width = len(list(run))
            if visible:
                parts.append(f"M{x} {y}h{width}v1h-{width}z")
            x += width
    return "".join(parts)
