"""The shapes a pattern may lower to: sets of (query, key) pairs in logical positions.

A pattern names shapes whose union it is; they may overlap. `disjoint` orders them and says of each what the earlier
ones hold already, so that no pair is counted twice. `tiles.lower` then cuts them into batches of equal dense problems.

Every shape has `holds(q, k)`, its definition, causality included, on ints or tensors that broadcast; and `align`: the
shift of q and k together under which it does not change (1: it depends on the distance alone; 0: on the position).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from hf_longctx.patterns.base import Pattern

#: Blocks that a draw gives, and keys in one, up to which it is cheaper to draw than to ask about each key of a window.
_DRAWN = 4096


@dataclass(frozen=True)
class Strip:
    """The pairs with low <= q - k < high and k < stop: windows, sinks, causal attention.

    Args:
        low: the smallest distance, at least 0 (causality).
        high: one past the largest distance; None where unbounded.
        stop: one past the last key; None where unbounded.

    >>> [k for k in range(10) if Strip(2, 5).holds(9, k)]
    [5, 6, 7]
    """

    low: int = 0
    high: int | None = None
    stop: int | None = None

    @property
    def align(self) -> int:
        """Any shift, unless it ends at a key."""
        return 1 if self.stop is None else 0

    def holds(self, q: Any, k: Any) -> Any:
        """Whether the strip holds the pair (q, k)."""
        held = q - k >= self.low
        if self.high is not None:
            held = held & (q - k < self.high)
        return held if self.stop is None else held & (k < self.stop)

    def meets(self, first: Any, last: Any, k: Any) -> Any:
        """Whether any of the rows from `first` to `last` is held with the key k.

        >>> [k for k in range(10) if Strip(2, 5).meets(8, 9, k)]
        [4, 5, 6, 7]
        """
        met = last - k >= self.low
        if self.high is not None:
            met = met & (first - k < self.high)
        return met if self.stop is None else met & (k < self.stop)

    def within(self, window: int) -> Strip | None:
        """The pairs nearer than `window`, or None if there are none.

        >>> Strip(stop=4).within(16), Strip(low=16).within(16)
        (Strip(low=0, high=16, stop=4), None)
        """
        high = window if self.high is None else min(self.high, window)
        return Strip(self.low, high, self.stop) if high > self.low else None


@dataclass(frozen=True)
class Blocks:
    """The pairs k <= q whose blocks of `size` tokens are at most `previous` apart.

    >>> [k for k in range(10) if Blocks(3, 1).holds(7, k)]
    [3, 4, 5, 6, 7]
    """

    size: int
    previous: int = 0

    @property
    def align(self) -> int:
        """A block."""
        return self.size

    def holds(self, q: Any, k: Any) -> Any:
        """Whether the blocks hold the pair (q, k)."""
        return (k <= q) & (q // self.size - k // self.size <= self.previous)

    def meets(self, first: Any, last: Any, k: Any) -> Any:
        """Whether any of the rows from `first` to `last` is held with the key k.

        >>> [k for k in range(10) if Blocks(3).meets(5, 7, k)]
        [3, 4, 5, 6, 7]
        """
        return (k <= last) & (first // self.size - k // self.size <= self.previous)


@dataclass(frozen=True)
class Spaced:
    """A shape on each residue class modulo `spacing` by itself, in units of the class: dilation.

    The classes are independent: n tokens are `spacing` sequences of n / spacing tokens.

    >>> [k for k in range(10) if Spaced(Strip(high=3), 4).holds(9, k)]
    [1, 5, 9]
    """

    inner: Strip | Blocks
    spacing: int

    @property
    def align(self) -> int:
        """As the inner shape, in units of the class."""
        return 1 if self.inner.align == 1 else self.inner.align * self.spacing

    def holds(self, q: Any, k: Any) -> Any:
        """Whether the pair is of one class, and held there."""
        return ((q - k) % self.spacing == 0) & self.inner.holds(q // self.spacing, k // self.spacing)


@dataclass(frozen=True)
class Segments:
    """The pairs k <= q of one block of `size` tokens and one residue class modulo `spacing` (LongNet's segments).

    Args:
        size: tokens in a block.
        spacing: distance between neighbours of a class.
        after: where above 0, only pairs that are not in the same smaller block, of `after` tokens. It divides `size`.

    >>> [k for k in range(12) if Segments(6, 2).holds(11, k)], [k for k in range(12) if Segments(6, 2, 3).holds(11, k)]
    ([7, 9, 11], [7])
    """

    size: int
    spacing: int
    after: int = 0

    @property
    def align(self) -> int:
        """A block."""
        return self.size

    def holds(self, q: Any, k: Any) -> Any:
        """Whether the pair is of one class, in one block."""
        held = Blocks(self.size).holds(q, k) & ((q - k) % self.spacing == 0)
        return held & (k // self.after < q // self.after) if self.after else held


@dataclass(frozen=True)
class Columns:
    """The last `width` keys of each earlier block of `size` tokens (Sparse Transformer's summaries).

    >>> [k for k in range(12) if Columns(4, 1).holds(11, k)]
    [3, 7]
    """

    size: int
    width: int

    @property
    def align(self) -> int:
        """A block."""
        return self.size

    def holds(self, q: Any, k: Any) -> Any:
        """Whether k is a summary of a block before q's."""
        return (k % self.size >= self.size - self.width) & (k // self.size < q // self.size)


@dataclass(frozen=True)
class Drawn:
    """Whole earlier blocks of `size` keys that `pattern.draws` gives for each block of queries."""

    pattern: Any
    size: int
    layer: int = 0
    head: int = 0

    align = 0

    def holds(self, q: Any, k: Any) -> Any:
        """What the pattern allows."""
        return self.pattern.allows(q, k, layer=self.layer, head=self.head) & (k <= q)


@dataclass(frozen=True, eq=False)
class Own:
    """The pairs that any pattern allows, known by its rule alone."""

    pattern: Pattern
    layer: int = 0
    head: int = 0

    align = 0

    @property
    def _key(self) -> tuple[object, int, int]:
        """What makes two equal: equal patterns, or the same one where a pattern holds what has no hash."""
        try:
            hash(self.pattern)
        except TypeError:
            return id(self.pattern), self.layer, self.head
        return self.pattern, self.layer, self.head

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Own) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def holds(self, q: Any, k: Any) -> Any:
        """What the pattern allows."""
        return self.pattern.allows(q, k, layer=self.layer, head=self.head) & (k <= q)


@dataclass(frozen=True)
class Near:
    """The pairs of another shape that are nearer than `window`: what a layer's own window leaves of it.

    >>> [k for k in range(10) if Near(Blocks(8), 3).holds(7, k)]
    [5, 6, 7]
    """

    inner: Blocks | Spaced | Segments | Columns | Drawn | Own
    window: int

    @property
    def align(self) -> int:
        """As the inner shape."""
        return self.inner.align

    def holds(self, q: Any, k: Any) -> Any:
        """Whether the inner shape holds the pair, and it is near."""
        return self.inner.holds(q, k) & (q - k < self.window)


Shape: TypeAlias = Strip | Blocks | Spaced | Segments | Columns | Drawn | Own | Near


def within(shape: Shape, window: int) -> Shape | None:
    """The pairs of a shape that are nearer than `window`, as one of its own kind where it can be; None if none is.

    >>> within(Spaced(Strip(), 4), 10)
    Spaced(inner=Strip(low=0, high=3, stop=None), spacing=4)
    >>> within(Blocks(8), 8), within(Blocks(8), 7)
    (Blocks(size=8, previous=0), Near(inner=Blocks(size=8, previous=0), window=7))
    """
    if isinstance(shape, Strip):
        return shape.within(window)
    if isinstance(shape, Near):
        return Near(shape.inner, min(shape.window, window))
    if isinstance(shape, Spaced) and isinstance(shape.inner, Strip):
        band = shape.inner.within(-(-window // shape.spacing))
        return None if band is None else Spaced(band, shape.spacing)
    if isinstance(shape, Blocks) and (shape.previous + 1) * shape.size <= window:
        return shape
    if isinstance(shape, Segments) and shape.size <= window:
        return shape
    if isinstance(shape, Drawn) and max(shape.size, shape.pattern.blocks) > max(window, _DRAWN):
        return Near(Own(shape.pattern, shape.layer, shape.head), window)  # far fewer keys are near than are drawn
    return Near(shape, window)


def shapes_of(pattern: Pattern, layer: int, heads: Iterable[int]) -> tuple[tuple[Shape, ...], ...]:
    """What a pattern comes to in each of these heads; as a key it holds layer and head only where they matter."""
    each = ((pattern.pieces(layer=layer, head=h), h) for h in heads)
    return tuple((Own(pattern, layer, h),) if shapes is None else shapes for shapes, h in each)


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
