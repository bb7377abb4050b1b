"""The shapes a pattern may lower to: sets of (query, key) pairs in logical positions.

A pattern names shapes whose union it is; they may overlap. `pieces.disjoint` orders them and says of each what the
earlier ones hold already, so that no pair is counted twice. `tiles.lower` then cuts them into batches of equal dense
problems.

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


def unwindowed(shape: Shape) -> Shape:
    """The shape itself, or what stands behind its window: for questions that a window does not change."""
    return shape.inner if isinstance(shape, Near) else shape


def shapes_of(pattern: Pattern, layer: int, heads: Iterable[int]) -> tuple[tuple[Shape, ...], ...]:
    """What a pattern comes to in each of these heads; as a key it holds layer and head only where they matter."""
    each = ((pattern.pieces(layer=layer, head=h), h) for h in heads)
    return tuple((Own(pattern, layer, h),) if shapes is None else shapes for shapes, h in each)
