"""The memory wall as a picture: four quantities by length, on logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .heatmap import length_label, replacing

# Okabe and Ito's colours, told apart by every kind of colour vision; dashes tell apart what shares one.
_FIXED = {"standard": "#D55E00", "flash": "#0072B2"}
_STATE = "#009E73"
_OTHERS = ("#CC79A7", "#E69F00", "#56B4E9", "#777777", "#000000")
_DASHES = ("--", "-.", ":", (0, (7, 2)))
_GREY = "#555555"
#: Least distance of two labels, as a share of the height.
_APART = 0.034


def draw(document: dict[str, Any], path: Path, title: str) -> None:
    """Draw the wall.

    Args:
        document: what `wall` returned, for at least two lengths.
        path: where the picture goes; its ending chooses the format.
        title: first line of the picture.

    Raises:
        ValueError: the ending is no image format, the folder does not exist, or there is one length only.
    """
    from matplotlib.figure import Figure

    methods = document["methods"]
    lengths = [row["tokens"] for row in methods[0]["rows"]]
    if len(lengths) < 2:
        raise ValueError(f"a plot needs at least two lengths, but there is {lengths[0]} only: give more lengths")
    figure = Figure(figsize=(15, 11), dpi=130, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=14)
    panels = figure.subplots(2, 2)
    memory, name = document["machine"]["memory"], document["machine"]["name"]
    styles = _styles([m["name"] for m in methods])

    def curves(key: str) -> list[tuple[str, list[int | None], Any]]:
        return [(m["name"], [row[key] for row in m["rows"]], styles[m["name"]]) for m in methods]

    everything = [
        ("Attention scores stored at once", "bytes", _scores(document), True),
        ("Cache and states after the prompt", "bytes", curves("cache_bytes"), True),
        ("Prefill at once: weights, cache, scores, activations", "bytes", curves("peak_bytes"), True),
        ("Operations of attention, all layers", "FLOP", curves("attention_flops"), False),
    ]
    for axes, (heading, unit, lines, limited) in zip(panels.flat, everything):
        _panel(axes, heading, unit, lengths, lines)
        if limited:
            axes.axhline(memory, color=_GREY, linewidth=1.4, linestyle=(0, (1, 1)), zorder=1)
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.85}
            place = {"textcoords": "offset points", "color": _GREY, "fontsize": 9, "bbox": box, "zorder": 3}
            axes.annotate(name, (lengths[0], memory), (4, 5), **place)
    figure.supxlabel("tokens of the prompt (1K = 1024)", fontsize=10)
    image = path.suffix.lstrip(".") or "png"
    with replacing(path) as partial:
        figure.savefig(partial, format=image)


def _styles(names: Sequence[str]) -> dict[str, tuple[str, Any, float]]:
    """Colour, dashes and width of each method."""
    styles: dict[str, tuple[str, Any, float]] = {}
    others = [n for n in names if n not in _FIXED and not n.startswith("mamba2")]
    for name in names:
        if name in _FIXED:
            styles[name] = (_FIXED[name], "-", 2.6)
        elif name.startswith("mamba2"):
            styles[name] = (_STATE, "-", 2.6)
        else:
            i = others.index(name)
            styles[name] = (_OTHERS[i % len(_OTHERS)], _DASHES[i // len(_OTHERS) % len(_DASHES)], 1.6)
    return styles


def _scores(document: dict[str, Any]) -> list[tuple[str, list[int | None], Any]]:
    """The first panel compares what is stored of the scores, not methods."""
    by_name = {m["name"]: m["rows"] for m in document["methods"]}
    lines = []
    if "standard" in by_name:
        rows, heads = by_name["standard"], document["architecture"]["heads"]
        parts = (
            ("matrix_bytes", "one matrix (a head)", ":"),
            ("layer_bytes", f"a layer ({heads} heads)", "--"),
            ("all_scores_bytes", f"all {rows[0]['matrices']:,} matrices", "-"),
        )
        lines += [
            (label, [row[key] for row in rows], (_FIXED["standard"], dashes, 2.4)) for key, label, dashes in parts
        ]
    if "flash" in by_name:
        rows = [row["layer_bytes"] for row in by_name["flash"]]
        lines.append(("flash: a layer's log-sum-exps", rows, (_FIXED["flash"], "-", 2.4)))
    return lines


def _panel(
    axes: Any, heading: str, unit: str, lengths: Sequence[int], lines: list[tuple[str, list[int | None], Any]]
) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_title(heading, loc="left", fontsize=11)
    axes.set_ylabel(unit)
    together: dict[tuple[float, ...], list[str]] = {}
    style: dict[tuple[float, ...], Any] = {}
    for name, values, look in lines:
        if values[-1] is None:
            continue
        # Floats: a count of operations may be past what an int64 holds.
        points = tuple(float(v or 0) for v in values)
        points = next((known for known in together if _alike(known, points)), points)
        together.setdefault(points, []).append(name)
        style.setdefault(points, look)
    for points in together:
        colour, dashes, width = style[points]
        axes.plot(lengths, points, color=colour, linestyle=dashes, linewidth=width)
    low = min(v for points in together for v in points if v)
    high = max(v for points in together for v in points if v)
    axes.set_ylim(low / 3, high * 8)
    places = _spread([_share(points[-1] or 1, low / 3, high * 8) for points in together])
    for place, (points, names) in zip(places, together.items()):
        label = ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
        axes.annotate(
            label,
            (lengths[-1], points[-1]),
            (1.03, place),
            textcoords="axes fraction",
            color=style[points][0],
            fontsize=8.5,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": style[points][0], "linewidth": 0.7, "relpos": (0, 0.5)},
        )
    ticks = list(lengths[:: max(1, len(lengths) // 6)])
    axes.set_xticks(ticks, [length_label(n) for n in ticks])
    axes.minorticks_off()
    axes.set_xlim(lengths[0], lengths[-1])
    axes.grid(True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _share(value: float, low: float, high: float) -> float:
    """The height of a value on a logarithmic axis, 0 to 1."""
    return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))


def _alike(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two curves can be told apart on a logarithmic axis."""
    return all(abs(math.log(max(a, 1)) - math.log(max(b, 1))) < 0.04 for a, b in zip(one, other))


def _spread(heights: Sequence[float]) -> list[float]:
    """Move labels apart, in their order, by the least sum of squares: isotonic regression of what distance leaves.

    >>> _spread([0.5, 0.1])
    [0.5, 0.1]
    >>> [round(height, 3) for height in _spread([0.5, 0.5])]
    [0.483, 0.517]
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    blocks: list[list[float]] = []  # mean and size of runs that move together
    for rank, i in enumerate(order):
        blocks.append([heights[i] - rank * _APART, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, size = blocks.pop()
            before = blocks[-1]
            blocks[-1] = [(before[0] * before[1] + mean * size) / (before[1] + size), before[1] + size]
    placed = [mean for mean, size in blocks for _ in range(int(size))]
    result = [0.0] * len(heights)
    for rank, i in enumerate(order):
        result[i] = placed[rank] + rank * _APART
    return result
