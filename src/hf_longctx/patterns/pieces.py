"""From shapes that may overlap to pieces that do not: no pair of query and key is counted twice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hf_longctx.patterns.geometry import Blocks, Columns, Drawn, Near, Own, Segments, Shape, Spaced, Strip


@dataclass(frozen=True)
class Piece:
    """The pairs that `shape` holds and none of the shapes in `minus` does."""

    shape: Shape
    minus: tuple[Shape, ...] = ()

    def holds(self, q: Any, k: Any) -> Any:
        """Whether the piece holds the pair (q, k)."""
        held = self.shape.holds(q, k)
        for other in self.minus:
            held = held & ~other.holds(q, k)
        return held


def disjoint(shapes: Iterable[Shape]) -> tuple[Piece, ...]:
    """The same pairs as disjoint pieces.

    Strips, combs of one spacing, and segments in segments are made disjoint exactly. Otherwise a later piece is masked
    by "not in the earlier ones". What depends on the distance alone comes first, because a mask of such shapes serves
    all problems of a tile. What names its keys one by one comes last: most of its problems meet no strip, and the rest
    alone are masked.

    >>> [p.shape for p in disjoint([Strip(high=1024), Strip(stop=4)])]
    [Strip(low=0, high=1024, stop=None), Strip(low=1024, high=None, stop=4)]
    >>> disjoint([Spaced(Strip(), 4), Strip(high=6)])[1]
    Piece(shape=Spaced(inner=Strip(low=2, high=None, stop=None), spacing=4), minus=())
    """
    shapes = tuple(dict.fromkeys(shapes))
    strips = _strips(s for s in shapes if isinstance(s, Strip))
    near, first = [s for s in strips if s.stop is None], [s for s in strips if s.stop is not None]
    # From the row back as far as this, every key is held by a strip.
    held = near[0].high if near and near[0].low == 0 else 0
    if held is None:
        return (Piece(near[0]),)
    combs: list[Shape] = []
    for spacing in dict.fromkeys(s.spacing for s in shapes if isinstance(s, Spaced)):
        bands = [
            s.inner for s in shapes if isinstance(s, Spaced) and s.spacing == spacing and isinstance(s.inner, Strip)
        ]
        for band in _strips(bands):
            low = max(band.low, -(-held // spacing))
            if band.high is None or low < band.high:
                combs.append(Spaced(Strip(low, band.high, band.stop), spacing))
    blocks = [s for s in shapes if isinstance(s, Blocks)]
    spaced = _segments([s for s in shapes if isinstance(s, Segments)], [b.size for b in blocks if b.previous == 0])
    columns = [s for s in shapes if isinstance(s, Columns)]
    chosen = [s for s in shapes if isinstance(s, Drawn | Own | Near)]
    out: list[Piece] = []
    for shape in (*near, *blocks, *combs, *spaced, *columns, *first, *chosen):
        out.append(Piece(shape, tuple(p.shape for p in out if not _apart(p.shape, shape))))
    return tuple(out)


def _apart(a: Shape, b: Shape) -> bool:
    """Whether two shapes certainly share no pair."""
    if isinstance(b, Near):
        return (isinstance(a, Strip) and a.low >= b.window) or _apart(a, b.inner)
    if isinstance(a, Near):
        return _apart(a.inner, b)
    if isinstance(a, Strip) and isinstance(b, Strip):
        return True  # made so above
    if isinstance(a, Strip) and isinstance(b, Spaced) and isinstance(b.inner, Strip):
        return a.high is not None and b.inner.low * b.spacing >= a.high
    if isinstance(a, Spaced) and isinstance(b, Spaced) and a.spacing == b.spacing:
        return isinstance(a.inner, Strip) and isinstance(b.inner, Strip)
    if isinstance(a, Blocks | Segments) and isinstance(b, Segments) and b.after % a.size == 0 and b.after:
        return isinstance(a, Segments) or a.previous == 0
    if isinstance(a, Blocks) and isinstance(b, Columns):
        return a.size == b.size and a.previous == 0
    return isinstance(a, Blocks) and isinstance(b, Drawn) and a.size == b.size and a.previous == 0


def _segments(segments: list[Segments], blocks: list[int]) -> list[Segments]:
    """Segments less the smaller blocks in which a pattern, blocks or segments, already has all of their pairs."""
    out: list[Segments] = []
    for segment in sorted(segments, key=lambda s: (s.size, s.spacing)):
        finer = [s.size for s in out if segment.spacing % s.spacing == 0] + blocks
        after = max((size for size in finer if segment.size % size == 0), default=0)
        if after < segment.size:
            out.append(Segments(segment.size, segment.spacing, after))
    return out


def _strips(strips: Iterable[Strip]) -> tuple[Strip, ...]:
    """The same pairs as disjoint strips: at each distance the longest run of keys counts."""
    strips = tuple(strips)
    edges = sorted({s.low for s in strips} | {s.high for s in strips if s.high is not None})
    out: list[Strip] = []
    for low, high in zip(edges, (*edges[1:], None)):
        here = [s for s in strips if s.low <= low and (s.high is None or s.high > low)]
        if not here:
            continue
        stops = [s.stop for s in here]
        known = [s for s in stops if s is not None]
        stop = max(known) if len(known) == len(stops) else None
        if out and out[-1].high == low and out[-1].stop == stop:
            out[-1] = Strip(out[-1].low, high, stop)
        else:
            out.append(Strip(low, high, stop))
    return tuple(out)
