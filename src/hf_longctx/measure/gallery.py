"""Attention patterns for people: what each is, what it costs, and its picture in the terminal, as PNG or as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_longctx.measure.heatmap import length_label, replacing
from hf_longctx.patterns import Pattern, gallery, parse
from hf_longctx.patterns.base import REGISTRY
from hf_longctx.patterns.presets import PRESETS
from hf_longctx.patterns.retention import most_kept
from hf_longctx.patterns.share import percent, visible_share

SIZE = 24
"""Tokens a picture draws."""
LENGTHS = (4096, 32768, 131072)
"""Tokens at which the visible share is given."""

_ACCENT, _FUTURE, _BLANK, _TEXT, _QUIET = "#2f4b8f", "#ffffff", "#e3e8e5", "#1d2320", "#68736e"
_COLUMNS = 5


@dataclass(frozen=True)
class Facts:
    """What the list says of a pattern or preset.

    Attributes:
        name: in text forms.
        text: a text form of usual size, which the numbers are for.
        sees: when a key is seen; d is query less key.
        source: the paper.
        used_by: models.
        shares: visible pairs as a share of causal attention's, by length in tokens; None where counting is too slow.
        keeps: the most keys that a cache has to keep; None where a cache can drop nothing.
    """

    name: str
    text: str
    sees: str
    source: str
    used_by: str
    shares: dict[int, float | None]
    keeps: int | None


@dataclass(frozen=True)
class Picture:
    """A pattern drawn for a few tokens.

    Attributes:
        text: the pattern's text form.
        sees: when a key is seen.
        grid: a row a query, True where it sees the key.
        active: how many cells are True.
        causal: how many would be under full causal attention.
    """

    text: str
    sees: str
    grid: tuple[tuple[bool, ...], ...]
    active: int
    causal: int

    @property
    def caption(self) -> str:
        """Cells seen, and how many times fewer that is than causal attention.

        >>> draw(parse("window:6")).caption
        '129 of 576 cells, 2.3x fewer than causal'
        """
        fewer = f"{self.causal / self.active:.1f}x fewer than causal" if self.active else "nothing is seen"
        return f"{self.active} of {len(self.grid) ** 2} cells, " + (
            "all that is causal" if self.active == self.causal else fewer
        )


def facts() -> list[Facts]:
    """Every registered pattern, then every preset.

    >>> [one.keeps for one in facts() if one.name in ("window", "strided")]
    [None, 1023]
    """
    found = []
    for name, small in gallery():
        cls = REGISTRY[name]
        pattern = _pattern(cls.typical) if cls.typical else small
        sees = cls.sees or (cls.__doc__ or "").strip().partition("\n")[0]
        found.append(_facts(name, pattern, sees, cls.source, cls.used_by))
    for name, (text, source) in PRESETS.items():
        paper, _, what = source.partition(": ")
        found.append(_facts(name, _pattern(text), what, paper, ""))
    return found


def pictures(patterns: Sequence[Pattern] | None = None, size: int = SIZE) -> list[Picture]:
    """Draw patterns; a small example of every registered one, and a union, if none are given.

    Args:
        patterns: what to draw.
        size: tokens a side.

    >>> len(pictures()) == len(REGISTRY) + 1
    True
    """
    if patterns is None:
        patterns = [*(pattern for _, pattern in gallery()), _pattern("window:6+global:2")]
    return [draw(pattern, size) for pattern in patterns]


def draw(pattern: Pattern, size: int = SIZE) -> Picture:
    """A pattern drawn for `size` tokens, of layer and head 0."""
    rows = tuple(tuple(cell == "#" for cell in line.split()) for line in pattern.grid(size).splitlines())
    sees = "" if pattern.name is None else type(pattern).sees
    return Picture(str(pattern), sees, rows, sum(map(sum, rows)), size * (size + 1) // 2)


def write(path: Path, drawn: Sequence[Picture]) -> None:
    """Write pictures to a `.png` or `.html` file, complete or not at all.

    Args:
        path: the file; its suffix says which.
        drawn: the pictures.

    Raises:
        ValueError: another suffix.
        ImportError: matplotlib or jinja2 is not installed.
    """
    writers = {".png": _png, ".html": _html}
    if path.suffix not in writers:
        raise ValueError(f"--out is {str(path)!r}: it must end in {' or '.join(writers)}")
    with replacing(path) as partial:
        writers[path.suffix](partial, drawn)


def to_dict(one: Facts | Picture) -> dict[str, Any]:
    """Plain data for JSON; a picture with its caption, its grid as text."""
    plain = asdict(one)
    if isinstance(one, Picture):
        plain["caption"] = one.caption
        plain["grid"] = [" ".join("#" if cell else "." for cell in row) for row in one.grid]
    return plain


def _pattern(text: str) -> Pattern:
    found = parse(text)
    if not isinstance(found, Pattern):
        raise TypeError(f"{text!r} differs by layer: give the pattern of one layer")
    return found


def _facts(name: str, pattern: Pattern, sees: str, source: str, used_by: str) -> Facts:
    shares = {n: visible_share(pattern, n) for n in LENGTHS}
    return Facts(name, str(pattern), sees, source, used_by, shares, most_kept(pattern))


def _png(path: Path, drawn: Sequence[Picture]) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.colors import ListedColormap
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('a picture needs matplotlib: pip install "hf_longctx[report]"') from error

    columns = min(_COLUMNS, len(drawn))
    lines = -(-len(drawn) // columns)
    figure = Figure(figsize=(2.7 * columns, 3.15 * lines + 0.5), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    colours = ListedColormap([_FUTURE, _BLANK, _ACCENT])
    for axis, picture in zip(axes, drawn):
        size = len(picture.grid)
        cells = [[2 if seen else int(k <= q) for k, seen in enumerate(row)] for q, row in enumerate(picture.grid)]
        axis.pcolormesh(cells, cmap=colours, vmin=0, vmax=2, edgecolors="white", linewidth=0.7)
        axis.set(xlim=(0, size), ylim=(size, 0), aspect="equal", xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        axis.set_title(picture.text, fontsize=10, color=_TEXT, fontfamily="monospace", pad=5)
        axis.set_xlabel(picture.caption, fontsize=8, color=_QUIET, labelpad=4)
    for axis in axes[len(drawn) :]:
        axis.set_axis_off()
    figure.suptitle("A row a query, a column a key; blue is seen, grey is not", fontsize=9, color=_QUIET)
    figure.savefig(path, format="png")


def _html(path: Path, drawn: Sequence[Picture]) -> None:
    from hf_longctx.measure.page import fill

    tiles = [{"picture": picture, "size": len(picture.grid), "path": _path(picture)} for picture in drawn]
    rows = [
        {**asdict(one), "shares": [percent(one.shares[n]) for n in LENGTHS], "keeps": kept_text(one.keeps)}
        for one in facts()
    ]
    lengths = [length_label(n) for n in LENGTHS]
    path.write_text(fill("gallery.html.j2", tiles=tiles, rows=rows, lengths=lengths), encoding="utf-8")


def _path(picture: Picture) -> str:
    """SVG path data, a unit square a cell that is seen."""
    return "".join(f"M{x} {y}h.9v.9h-.9z" for y, row in enumerate(picture.grid) for x, seen in enumerate(row) if seen)


def kept_text(keeps: int | None) -> str:
    """Whether a cache can shrink, in words.

    >>> kept_text(1023), kept_text(None)
    ('yes, to 1,023 keys', 'no')
    """
    return "no" if keeps is None else f"yes, to {keeps:,} keys"
