"""From disjoint pieces to disjoint tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import torch

from hf_longctx.patterns.geometry import Blocks, Near, Segments, Shape, Spaced, Strip
from hf_longctx.patterns.picked import picked
from hf_longctx.patterns.pieces import Piece
from hf_longctx.patterns.regular import regular
from hf_longctx.patterns.stream import SIDE
from hf_longctx.patterns.tile import Tile

#: Elements of a mask made at once for a tall tile.
_MASK = 1 << 19
#: Rows, at least, of a stretch of what is seen through a window.
_STRETCH = 1024


def lower(
    pieces: tuple[Piece, ...],
    rows: tuple[int, int],
    keys: tuple[int, int],
    chunk: int | None = None,
    *,
    backward: bool = False,
) -> Iterator[Tile]:
    """Cut disjoint pieces, limited to a rectangle of logical positions, into disjoint tiles.

    Args:
        pieces: disjoint pieces.
        rows: the queries, first to one past the last.
        keys: the keys, first to one past the last.
        chunk: rows of one problem of a band; chosen from the band's width if None.
        backward: whether to choose it for the backward pass.

    Returns:
        Tiles that hold every pair exactly once.

    >>> for tile in lower((Piece(Strip(high=4)),), (0, 12), (0, 12), chunk=4):
    ...     print(tile.row, tile.rows, tile.key, tile.keys, tile.count, tile.low, tile.high)
    0 4 0 4 1 0 None
    4 4 1 7 2 -3 1
    """
    for piece in pieces:
        if isinstance(piece.shape, Near):
            yield from _near(piece.shape, piece.minus, rows, keys, chunk, backward)
        elif isinstance(piece.shape, Strip | Blocks | Spaced | Segments):
            yield from _regular(piece, rows, keys, chunk, backward)
        else:
            for tile in picked(piece.shape, rows, keys):
                yield replace(tile, minus=piece.minus)


def _near(
    shape: Near,
    minus: tuple[Shape, ...],
    rows: tuple[int, int],
    keys: tuple[int, int],
    chunk: int | None,
    backward: bool,
) -> Iterator[Tile]:
    """A stretch of rows after the other, each with the keys that its window reaches and what lies beyond masked."""
    inner = (Piece(shape.inner, (*minus, Strip(low=shape.window))),)
    # Stretches and keys begin where blocks do, so that the most of them are whole.
    unit = getattr(shape.inner, "size", SIDE)
    unit = unit if unit <= _STRETCH else SIDE
    step = -(-max(shape.window, _STRETCH) // unit) * unit
    for start in range(rows[0] // step * step, rows[1], step):
        own = max(start, rows[0]), min(start + step, rows[1])
        near = max((own[0] - shape.window + 1) // unit * unit, keys[0]), min(own[1], keys[1])
        if near[0] >= near[1]:
            continue
        row, key = own[0] - rows[0], near[0] - keys[0]
        for tile in lower(inner, own, near, chunk, backward=backward):
            if tile.picks is None:
                yield replace(tile, row=tile.row + row, key=tile.key + key)
            else:
                picks = torch.where(tile.picks >= 0, tile.picks + key, -1)
                yield replace(tile, row=tile.row + row, picks=picks, run=tile.run if key % tile.run == 0 else 1)


@lru_cache(maxsize=4096)
def _regular(
    piece: Piece, rows: tuple[int, int], keys: tuple[int, int], chunk: int | None, backward: bool
) -> tuple[Tile, ...]:
    """The tiles of a piece that is seen through views alone; a few hundred bytes each, so they are remembered."""
    tiles = regular(piece.shape, rows, keys, chunk, backward, batched=bool(piece.minus))
    if not piece.minus:
        return tuple(tiles)
    return tuple(cut for tile in tiles for cut in _less(tile, piece.minus, rows[0], keys[0]))


def _less(tile: Tile, minus: tuple[Shape, ...], row: int, key: int) -> Iterator[Tile]:
    """The tile without what `minus` holds: nothing, smaller, or masked."""
    tall = max(1, _MASK // tile.keys)
    if tile.rows > tall:
        # A mask as tall as the run would be large: cut it, and leave out the keys past the diagonal.
        for a in range(0, tile.rows, tall):
            low, high = (None if x is None else x - a for x in (tile.low, tile.high))
            size = min(tall, tile.rows - a)
            keys = tile.keys if low is None else min(tile.keys, size - low)
            part = replace(tile, row=tile.row + a * tile.spacing, rows=size, keys=keys, low=low, high=high)
            yield from _less(part, minus, row, key)
        return
    tile = replace(tile, minus=minus)
    if not tile.shared:
        yield tile
        return
    seen = tile.seen(row, key)
    alive, read = seen.any(1).nonzero()[:, 0], seen.any(0).nonzero()[:, 0]
    if not len(alive):
        return
    (a, b), (c, d) = (int(alive[0]), int(alive[-1]) + 1), (int(read[0]), int(read[-1]) + 1)
    shift = a - c
    cut = replace(
        tile,
        row=tile.row + a * tile.spacing,
        rows=b - a,
        key=tile.key + c * tile.spacing,
        keys=d - c,
        low=None if tile.low is None else tile.low - shift,
        high=None if tile.high is None else tile.high - shift,
    )
    if bool(seen[a:b, c:d].all()):
        cut = replace(cut, low=None, high=None, only=None, minus=())
    yield cut


__all__ = ["Tile", "lower"]
