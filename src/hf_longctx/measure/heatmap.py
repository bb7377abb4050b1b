"""The needle heatmap as a picture: depth against length, one panel a variant, and the colours it shares with the page.

The scale keeps the tradition of needle tests, red for lost and green for found, with a green that leans to blue and
ends of unequal lightness, so that it still reads with red-green colour blindness and in greyscale. Every cell says
its hits and its ``n`` as well.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SCALE: tuple[tuple[int, int, int], ...] = (
    (158, 42, 58),
    (209, 106, 74),
    (238, 186, 104),
    (182, 211, 150),
    (84, 176, 142),
)
"""sRGB stops of the colour scale, evenly spaced from recall 0 to 1."""

# Nearly black: with anything lighter the middle of the scale would leave no text of contrast 4.5.
_INK = {"dark": "#050606", "light": "#ffffff"}
_ACCENT = "#2f4b8f"
_TEXT, _QUIET, _BLANK = "#1d2320", "#68736e", "#eef0ee"
_MAX_LABELLED = 14


def colour(recall: float) -> str:
    """The colour of a recall.

    Args:
        recall: Share of hits, in [0, 1].

    Returns:
        A CSS colour, ``"#rrggbb"``.

    Raises:
        ValueError: ``recall`` is outside [0, 1].

    Examples:
        >>> colour(0.0), colour(1.0)
        ('#9e2a3a', '#54b08e')
    """
    if not 0.0 <= recall <= 1.0:
        raise ValueError(f"recall={recall!r}: must be a share between 0 and 1")
    place = recall * (len(SCALE) - 1)
    left = min(int(place), len(SCALE) - 2)
    part = place - left
    mixed = (round(a + (b - a) * part) for a, b in zip(SCALE[left], SCALE[left + 1]))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def ink(background: str) -> str:
    """The text colour, dark or light, that stands out more on a background.

    Args:
        background: A CSS colour, ``"#rrggbb"``.

    Returns:
        A CSS colour, chosen by the contrast ratio of WCAG 2.2.

    Examples:
        >>> ink(colour(0.0)), ink(colour(1.0))
        ('#ffffff', '#050606')
    """
    return max(_INK.values(), key=lambda text: contrast(text, background))


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.2, "contrast ratio").

    Examples:
        >>> round(contrast("#000000", "#ffffff"))
        21
    """
    light, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(css: str) -> float:
    channels = (int(css[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def length_label(tokens: int) -> str:
    """A length as people say it, k being 1024 as in RULER; never rounded, so no two lengths share a label.

    Examples:
        >>> [length_label(n) for n in (512, 1000, 1024, 1536, 12288, 1048576)]
        ['512', '1000', '1K', '1.5K', '12K', '1M']
    """
    for size, unit in ((1 << 20, "M"), (1 << 10, "K")):
        if tokens >= size and tokens * 10 % size == 0:
            return f"{tokens / size:g}{unit}"
    return str(tokens)


def depth_label(depth: float) -> str:
    """A depth in per cent, 0 at the start of the text.

    Examples:
        >>> depth_label(0.0), depth_label(0.125)
        ('0%', '12.5%')
    """
    return f"{round(depth * 100, 1):g}%"


def definition_text(entry: Mapping[str, Any]) -> str:
    """What a variant changes, in the text form of the command line.

    Args:
        entry: The variant's part of ``summary.json``.

    Examples:
        >>> definition_text({"definition": {"name": "w", "attention": "window:1024", "rope": "yarn:2"}})
        'attention=window:1024 rope=yarn:2'
        >>> definition_text({"definition": {}})
        'unpatched'
    """
    definition = entry.get("definition") or {}
    defaults = {"backend": "auto", "own_windows": "intersect"}
    parts = [
        f"{key}={value}" for key, value in definition.items() if key != "name" and value and value != defaults.get(key)
    ]
    return " ".join(parts) or "unpatched"


def claimed_boundary(claimed: int | None, lengths: Sequence[int]) -> int | None:
    """Before which column the claimed length ends.

    Args:
        claimed: Tokens the variant's config claims, or None.
        lengths: Tested lengths, ascending.

    Returns:
        The number of tested lengths within the claim; None where the claim lies beyond the longest one (a line at
        the edge would pull it in) or is unknown.

    Examples:
        >>> claimed_boundary(8192, [4096, 8192, 12288]), claimed_boundary(16384, [4096, 8192])
        (2, None)
    """
    if claimed is None or not lengths or claimed > lengths[-1]:
        return None
    return sum(length <= claimed for length in lengths)


def grid(summary: Mapping[str, Any]) -> tuple[list[int], list[float]]:
    """The lengths and depths of a run, ascending: those it set out for and those that any variant was measured at.

    Args:
        summary: A summary as in ``summary.json``.

    Returns:
        ``(lengths in tokens, depths in [0, 1])``.

    Examples:
        >>> cell = {"length": 1024, "depth": 0.5}
        >>> grid({"settings": {"lengths": [1024, 2048], "depths": [0.5]}, "variants": {"stock": {"cells": [cell]}}})
        ([1024, 2048], [0.5])
    """
    settings = summary.get("settings") or {}
    cells = [cell for entry in summary["variants"].values() for cell in entry["cells"]]
    lengths = {*settings.get("lengths", ()), *(cell["length"] for cell in cells)}
    depths = {*(round(float(d), 6) for d in settings.get("depths", ())), *(cell["depth"] for cell in cells)}
    return sorted(lengths), sorted(depths)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to, and put it in its place when the block ends well.

    A reader sees the old file or the new one, never a part; a block that fails leaves the old one.

    Args:
        path: The file to write or replace.

    Raises:
        ValueError: there is no such folder.
    """
    if not path.parent.is_dir():
        raise ValueError(f"{str(path)!r}: there is no folder {path.parent}: create it or choose another path")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def draw(summary: Mapping[str, Any], path: Path) -> None:
    """Draw the heatmaps of a run as a PNG, 900 points wide at two pixels a point.

    One panel a variant on shared axes: depth from 0% on top, a cell a tested (length, depth), hatched grey where
    nothing was scored, and a line where the claimed context ends.

    Args:
        summary: A summary as in ``summary.json``.
        path: Where the PNG goes; replaced at once when it is complete.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: The run has no length or no depth.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise ImportError('heatmap.png needs matplotlib: pip install "hf_longctx[report]"') from error
    lengths, depths = grid(summary)
    if not lengths or not depths:
        raise ValueError("the summary has no cell to draw; let the run answer its first question")
    panels = list(summary["variants"].items())
    columns = 1 if len(panels) == 1 else 2
    lines = math.ceil(len(panels) / columns)
    panel_height = min(3.6, max(1.5, 0.34 * len(depths))) + 0.95
    # A Figure of its own, not pyplot: no global state, and no display is ever asked for.
    spacing = ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.1)
    figure = Figure(figsize=(9.0, lines * panel_height + 0.9), dpi=200, facecolor="white", layout=spacing)
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False)
    for place, axis in enumerate(axes.flat):
        if place < len(panels):
            _draw_panel(axis, *panels[place], lengths=lengths, depths=depths)
        else:
            axis.set_axis_off()
    _draw_scale(figure, axes)
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


def _draw_panel(axis: Any, name: str, entry: Mapping[str, Any], *, lengths: list[int], depths: list[float]) -> None:
    from matplotlib.patches import Rectangle

    dense = max(len(lengths), len(depths)) > _MAX_LABELLED
    # White edges, so that the gap between cells is equally wide both ways whatever the shape of the panel.
    gap = 0.4 if dense else 2.5
    font = 9.5 if max(len(lengths), len(depths)) <= 8 else 7
    cells = {(cell["length"], cell["depth"]): cell for cell in entry["cells"]}
    for x, length in enumerate(lengths):
        for y, depth in enumerate(depths):
            cell = cells.get((length, depth))
            if cell is None or cell["recall"] is None:
                axis.add_patch(
                    Rectangle((x, y), 1, 1, facecolor=_BLANK, edgecolor="#cfd5d1", hatch="////", linewidth=0)
                )
                axis.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor="white", linewidth=gap))
                continue
            fill = colour(cell["recall"])
            axis.add_patch(Rectangle((x, y), 1, 1, facecolor=fill, edgecolor="white", linewidth=gap))
            if not dense:
                text = f"{cell['hits']}/{cell['n']}"
                axis.text(x + 0.5, y + 0.52, text, ha="center", va="center", fontsize=font, color=ink(fill))
    axis.set_xlim(0, len(lengths))
    axis.set_ylim(len(depths), 0)
    step_x, step_y = (math.ceil(len(ticks) / _MAX_LABELLED) for ticks in (lengths, depths))
    axis.set_xticks(
        [x + 0.5 for x in range(0, len(lengths), step_x)], [length_label(n) for n in lengths[::step_x]], fontsize=9
    )
    axis.set_yticks(
        [y + 0.5 for y in range(0, len(depths), step_y)], [depth_label(d) for d in depths[::step_y]], fontsize=9
    )
    axis.tick_params(length=0, colors=_QUIET, pad=5)
    for side in axis.spines.values():
        side.set_visible(False)
    claimed = entry.get("claimed")
    boundary = claimed_boundary(claimed, lengths)
    if boundary is not None:
        axis.plot([boundary] * 2, [-0.12, len(depths) + 0.08], color=_ACCENT, lw=2, clip_on=False, zorder=5)
    beyond = "" if boundary is not None or claimed is None else ", beyond the tested lengths"
    claim = "" if claimed is None else f"claims {length_label(claimed)}{beyond}"
    _title(axis, name, " · ".join(part for part in (definition_text(entry), claim) if part))


def _title(axis: Any, name: str, detail: str) -> None:
    shorten = detail if len(detail) <= 62 else detail[:61] + "…"
    # parse_math off: names and definitions may hold dollar signs and are never formulas.
    common = {
        "xycoords": "axes fraction",
        "textcoords": "offset points",
        "parse_math": False,
        "annotation_clip": False,
    }
    axis.annotate(
        name if len(name) <= 40 else name[:39] + "…",
        (0, 1),
        (0, 24),
        fontsize=12,
        weight="bold",
        color=_TEXT,
        **common,
    )
    axis.annotate(shorten, (0, 1), (0, 9), fontsize=8.5, color=_QUIET, **common)
    # Annotations take no room in the layout; an empty title of the same height does.
    axis.set_title(" ", fontsize=12, pad=24)


def _draw_scale(figure: Any, axes: Any) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    colours = LinearSegmentedColormap.from_list("recall", [tuple(c / 255 for c in stop) for stop in SCALE])
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), colours), ax=axes, location="bottom", shrink=0.32, aspect=28, pad=0.03
    )
    bar.set_ticks([0, 0.5, 1], labels=["0%", "50%", "100%"], fontsize=8, color=_QUIET)
    bar.ax.tick_params(length=0, pad=3)
    bar.outline.set_visible(False)
    bar.set_label(
        "share of needles found, by depth (down) and length in tokens (across); blue line: end of the claimed context",
        fontsize=8,
        color=_QUIET,
    )
