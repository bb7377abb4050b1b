"""The shapes a pattern may lower to, and how they are cut into dense problems.

A piece is a set of (query, key) pairs in logical positions. The only shape so far is the strip: a range of distances,
perhaps limited to the first keys. A window, causal attention, sinks and their unions are all strips. A strip is cut
into tiles: batches of equal dense problems that an engine can see through strided views.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias


@dataclass(frozen=True)
class Strip:
    """The pairs with low <= q - k < high and k < stop.

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

    def holds(self, q: int, k: int) -> bool:
        """Whether the strip holds the pair (q, k)."""
        near = self.high is None or q - k < self.high
        return near and self.low <= q - k and (self.stop is None or k < self.stop)

    def within(self, window: int) -> Strip | None:
        """The pairs nearer than `window`, or None if there are none.

        >>> Strip(stop=4).within(16), Strip(low=16).within(16)
        (Strip(low=0, high=16, stop=4), None)
        """
        high = window if self.high is None else min(self.high, window)
        return Strip(self.low, high, self.stop) if high > self.low else None


#: What `Pattern.pieces` returns a tuple of.
Piece: TypeAlias = Strip


@dataclass(frozen=True)
class Tile:
    """A batch of `count` equal dense problems, problem t shifted by t * step rows and keys.

    Problem t has the rows [row + t*step, row + t*step + rows) and the keys [key + t*step, key + t*step + keys).
    Its row i sees its key j where low <= i - j < high; None leaves that side open. Several problems tile the rows
    without gap or overlap, so step equals rows.

    Attributes:
        row: first row, counted from the run's first row.
        rows: rows in one problem.
        key: first key, counted from the span's first key.
        keys: keys in one problem.
        count: number of problems.
        low: smallest i - j that is seen.
        high: one past the largest i - j that is seen.
    """

    row: int
    rows: int
    key: int
    keys: int
    count: int = 1
    low: int | None = None
    high: int | None = None

    @property
    def step(self) -> int:
        """By how many rows and keys one problem follows the other."""
        return self.rows

    @property
    def stop(self) -> int:
        """One past the last row of the last problem."""
        return self.row + self.rows * self.count

    @property
    def whole(self) -> bool:
        """Whether every row sees every key."""
        return self.low is None and self.high is None

    @property
    def causal(self) -> bool:
        """Whether this is the lower triangle of a square, diagonal included."""
        return self.low == 0 and self.high is None and self.rows == self.keys


def disjoint(strips: Iterable[Strip]) -> tuple[Strip, ...]:
    """The same pairs as disjoint strips: at each distance the longest run of keys counts.

    >>> disjoint([Strip(high=1024), Strip(stop=4)])
    (Strip(low=0, high=1024, stop=None), Strip(low=1024, high=None, stop=4))
    >>> disjoint([Strip(), Strip(high=8), Strip(stop=2)])
    (Strip(low=0, high=None, stop=None),)
    """
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


@lru_cache(maxsize=256)
def lower(
    strips: tuple[Strip, ...],
    rows: tuple[int, int],
    keys: tuple[int, int],
    chunk: int | None = None,
    *,
    backward: bool = False,
) -> tuple[Tile, ...]:
    """Cut disjoint strips, limited to a rectangle of logical positions, into disjoint tiles.

    Args:
        strips: disjoint strips.
        rows: the queries, first to one past the last.
        keys: the keys, first to one past the last.
        chunk: rows of one problem of a band; chosen from the band's width if None.
        backward: whether to choose it for the backward pass.

    Returns:
        Tiles that hold every pair exactly once. No tile reads a key that none of its rows sees.

    >>> for tile in lower((Strip(high=4),), (0, 12), (0, 12), chunk=4):
    ...     print(tile)
    Tile(row=0, rows=4, key=0, keys=4, count=1, low=0, high=None)
    Tile(row=4, rows=4, key=1, keys=7, count=2, low=-3, high=1)
    """
    return tuple(tile for strip in strips for tile in _lower(strip, rows, keys, chunk, backward))


def chunk_for(width: int, *, backward: bool = False) -> int:
    """Rows of one problem of a band of `width` keys: enough to be efficient, few enough to waste little.

    Measured on CPU with 1, 3 and 4 query heads a group, 64 to 4096 keys: within 10% of the best. Backward adds up
    overlapping gradients of keys, (width / chunk) of them for each key, which is the better for fewer and larger ones.
    """
    if backward:
        return 64 if width < 1024 else 128
    return 32 if width < 512 else 64


def _lower(
    strip: Strip, rows: tuple[int, int], keys: tuple[int, int], chunk: int | None, backward: bool
) -> Iterator[Tile]:
    # Shift both axes so that the strip becomes a band: row u sees the keys in (u - width, u] among [0, m).
    shift = keys[0] + strip.low
    m = (keys[1] if strip.stop is None else min(keys[1], strip.stop)) - keys[0]
    u0, u1 = max(rows[0] - shift, 0), rows[1] - shift
    if m <= 0 or u1 <= u0:
        return
    width = u1 + m if strip.high is None else strip.high - strip.low
    u1 = min(u1, m + width - 1)
    back = shift - rows[0]  # from u to the row's index in the run
    size = chunk or chunk_for(width, backward=backward)

    # The band grows: row u sees all of [0, u].
    a1 = min(u1, width, m)
    if u0 < a1:
        if u0 == 0:
            yield Tile(back, a1, 0, a1, low=0)
        elif a1 - u0 <= size:
            yield Tile(u0 + back, a1 - u0, 0, a1, low=-u0)
        else:
            yield Tile(u0 + back, a1 - u0, 0, u0)
            yield Tile(u0 + back, a1 - u0, u0, a1 - u0, low=0)

    # The band in full width: equal problems, each from its first row's first key to its last row's last.
    b0, b1 = max(u0, width), min(u1, m)
    if b0 < b1:
        count, ragged = divmod(b1 - b0, size)
        if ragged:
            yield Tile(b0 + back, ragged, b0 - width + 1, ragged + width - 1, low=1 - width, high=1)
        if count:
            b0 += ragged
            yield Tile(b0 + back, size, b0 - width + 1, size + width - 1, count, low=1 - width, high=1)

    # The band is wider than the keys: all are seen.
    c0, c1 = max(u0, m), min(u1, width)
    if c0 < c1:
        yield Tile(c0 + back, c1 - c0, 0, m)

    # The band leaves the keys behind (they end before the rows do).
    for d0 in range(max(u0, width, m), u1, size):
        d1 = min(d0 + size, u1)
        yield Tile(d0 + back, d1 - d0, d0 - width + 1, m - (d0 - width + 1), high=1)
