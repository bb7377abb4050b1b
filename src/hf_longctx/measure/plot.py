"""Small SVG plots over length: scales, ticks and markers as plain numbers and paths for a template."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .heatmap import length_label

PLOT: Mapping[str, int] = {"width": 360, "height": 216, "left": 46, "top": 14, "right": 346, "bottom": 184}
"""Size of a panel and the box of its axes, in SVG user units."""

COLOURS = 7
"""Colours of the style sheet, ``--s0`` and on, told apart by every kind of colour vision."""
_SHAPES = 5
_MARGIN = 16
_APART = 26


@dataclass(frozen=True)
class Scale:
    """Values to a place between two ends.

    Attributes:
        low: value at `start`.
        high: value at `stop`.
        start: place in SVG units.
        stop: place in SVG units.
        log: whether the scale is logarithmic.
    """

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value, to a tenth of a unit; both ends alike put it in the middle.

        >>> Scale(1, 100, 0, 200, log=True)(10)
        100.0
        """
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        share = 0.5 if low == high else (value - low) / (high - low)
        return round(self.start + share * (self.stop - self.start), 1)


def across(values: Iterable[float]) -> Scale:
    """The horizontal scale over lengths, or over anything positive, logarithmic."""
    known = list(values)
    return Scale(min(known), max(known), PLOT["left"] + _MARGIN, PLOT["right"] - _MARGIN, log=True)


def upwards(values: Iterable[float]) -> Scale:
    """The vertical scale for values of at least 0: logarithmic where they span much, else from 0."""
    known = list(values)
    low, high = min(known), max(known)
    if low > 0 and high / low > 8:
        return Scale(low / 1.4, high * 1.4, PLOT["bottom"], PLOT["top"], log=True)
    return Scale(0.0, (high or 1.0) * 1.1, PLOT["bottom"], PLOT["top"])


def ticks(scale: Scale, say: Callable[[float], str], *, binary: bool = False) -> list[tuple[float, str]]:
    """Places and texts of a scale's lines at round values, about four of them.

    Args:
        scale: of the values.
        say: a value as text.
        binary: whether round means a power of two, as for bytes, instead of 1, 2 or 5 times a power of ten.

    >>> [text for _, text in ticks(Scale(0, 110, 0, 1), str)]
    ['0.0', '20.0', '40.0', '60.0', '80.0', '100.0']
    >>> [text for _, text in ticks(Scale(1, 50, 0, 1, log=True), str, binary=True)]
    ['1.0', '4.0', '16.0']
    """
    low, high = scale.low, scale.high
    if scale.log:
        values: list[float] = []
        for factors in ((1, 2, 5), (1, 3), (1,)) if not binary else ((1,),):
            base = 2.0 if binary else 10.0
            powers = range(math.floor(math.log(low, base)), math.ceil(math.log(high, base)) + 1)
            values = [m * base**power for power in powers for m in factors if low <= m * base**power <= high]
            if len(values) <= 6:
                break
        values = values[:: math.ceil(len(values) / 5)] if len(values) > 6 or binary else values
    else:
        raw = (high - low) / 4
        unit = 2.0 ** math.floor(math.log2(raw)) if binary else 10.0 ** math.floor(math.log10(raw))
        step = min((m * unit for m in ((1, 2) if binary else (1, 2, 5, 10))), key=lambda one: abs(math.log(one / raw)))
        values = [i * step for i in range(math.ceil(low / step), int(high / step) + 1)]
    return [(scale(value), say(value)) for value in values]


def length_ticks(scale: Scale, lengths: Iterable[int]) -> list[tuple[float, str]]:
    """Places and labels of lengths, leaving out those whose labels would touch."""
    found: list[tuple[float, str]] = []
    for length in sorted(set(lengths)):
        if not found or scale(length) - found[-1][0] >= _APART:
            found.append((scale(length), length_label(length)))
    return found


def path(points: Iterable[tuple[float, float]]) -> str:
    """SVG points of a line."""
    return " ".join(f"{x},{y}" for x, y in points)


def marker(index: int, x: float, y: float, r: float = 4.5) -> str:
    """SVG path of the shape that stands for the series of that index: disc, square, triangle, diamond, wedge.

    >>> marker(1, 10, 10, 4)
    'M6.4 6.4h7.2v7.2h-7.2z'
    """
    shape = index % _SHAPES
    if shape == 0:
        return f"M{x - r:g} {y:g}a{r:g} {r:g} 0 1 0 {2 * r:g} 0a{r:g} {r:g} 0 1 0 {-2 * r:g} 0z"
    if shape == 1:
        side = 1.8 * r
        return f"M{x - side / 2:g} {y - side / 2:g}h{side:g}v{side:g}h{-side:g}z"
    if shape == 2:
        return f"M{x:g} {y - 1.15 * r:g}l{1.1 * r:g} {2 * r:g}h{-2.2 * r:g}z"
    if shape == 3:
        d = 1.25 * r
        return f"M{x:g} {y - d:g}l{d:g} {d:g}l{-d:g} {d:g}l{-d:g} {-d:g}z"
    return f"M{x:g} {y + 1.15 * r:g}l{1.1 * r:g} {-2 * r:g}h{-2.2 * r:g}z"


def legend(names: Sequence[str]) -> list[dict[str, Any]]:
    """Name, colour class and marker of each series, in order."""
    return [
        {"name": name, "colour": f"s{i % COLOURS}", "marker": marker(i, 14, 7), "dash": dash(i)}
        for i, name in enumerate(names)
    ]


def dash(index: int) -> str:
    """Dashes of a series, so that lines on top of each other both show; the first is solid.

    >>> dash(0), dash(1)
    ('', '7 4')
    """
    return ("", "7 4", "2 4", "9 4 2 4")[index % 4]
