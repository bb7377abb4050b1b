"""Cutting shapes that name their keys one by one into tiles: columns, drawn blocks, and a rule alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from hf_longctx.patterns.geometry import Columns, Drawn, Own, Shape
from hf_longctx.patterns.stream import SIDE, kinds
from hf_longctx.patterns.tile import Tile


def picked(shape: Shape, rows: tuple[int, int], keys: tuple[int, int]) -> Iterator[Tile]:
    """The tiles of columns, of drawn blocks or of a rule. Arguments as in `tiles.lower`."""
    if rows[0] >= rows[1] or keys[0] >= keys[1]:
        return
    if isinstance(shape, Columns):
        yield from _columns(shape, rows, keys)
    elif isinstance(shape, Drawn):
        yield from _drawn(shape, rows, keys)
    elif isinstance(shape, Own):
        yield from _own(shape, rows, keys)


def _columns(shape: Columns, rows: tuple[int, int], keys: tuple[int, int]) -> Iterator[Tile]:
    size = shape.size
    # Enough rows at once for the copies of keys to cost little.
    tall = size * -(-512 // size)
    for a in range(max(rows[0], size) // tall * tall, rows[1], tall):
        lo, hi = max(a, rows[0], size), min(a + tall, rows[1])
        if lo >= hi:
            continue
        # Columns that all of these rows see, then those that only some do.
        middle = lo // size * size
        for k0, k1, only in ((keys[0], middle, None), (max(middle, keys[0]), hi, shape)):
            k = torch.arange(k0, max(k0, min(k1, keys[1], (hi - 1) // size * size)))
            k = k[k % size >= size - shape.width] - keys[0]
            if len(k):
                yield Tile(lo - rows[0], hi - lo, 0, len(k), only=only, picks=k[None])


def _drawn(shape: Drawn, rows: tuple[int, int], keys: tuple[int, int]) -> Iterator[Tile]:
    size = shape.size
    # The first block has none before it.
    blocks = torch.arange(max(rows[0] // size, 1), (rows[1] - 1) // size + 1)
    if not len(blocks):
        return
    drawn = shape.pattern.draws(blocks, layer=shape.layer, head=shape.head)
    picks = drawn[:, :, None] * size + torch.arange(size) - keys[0]
    there = (drawn[:, :, None] >= 0) & (picks >= 0) & (picks < keys[1] - keys[0])
    picks = picks.where(there, -1).flatten(1)
    full, some = (picks >= 0).all(1), (picks >= 0).any(1)
    # Runs of blocks that see something, alike in whether there is filling; ragged ones by themselves.
    whole = (blocks * size >= rows[0]) & ((blocks + 1) * size <= rows[1])
    kind = torch.where(some, full.long() + 2 * whole.long(), -1).tolist()
    for start, stop in _runs(kind):
        for a, b in [(start, stop)] if kind[start] >= 2 else [(i, i + 1) for i in range(start, stop)]:
            lo, hi = max(int(blocks[a]) * size, rows[0]), min((int(blocks[a]) + 1) * size, rows[1])
            run = size if kind[start] & 1 and keys[0] % size == 0 else 1
            yield Tile(lo - rows[0], hi - lo, 0, picks.shape[1], b - a, picks=picks[a:b], run=run)


def _own(shape: Own, rows: tuple[int, int], keys: tuple[int, int]) -> Iterator[Tile]:
    for at, full, partly in kinds(shape, rows, keys):
        for lists, only in ((full, None), (partly, shape)):
            for start, stop in _alike([len(x) for x in lists]):
                most = max(len(x) for x in lists[start:stop])
                if most == 0:
                    continue
                block = torch.full((stop - start, most), -1, dtype=torch.int64)
                for i, x in enumerate(lists[start:stop]):
                    block[i, : len(x)] = x
                picks = block[:, :, None] * SIDE + torch.arange(SIDE) - keys[0]
                there = (block[:, :, None] >= 0) & (picks >= 0) & (picks < keys[1] - keys[0])
                run = SIDE if keys[0] % SIDE == 0 and bool((there.any(2) == there.all(2)).all()) else 1
                picks = picks.where(there, -1).flatten(1)
                # Neighbours, each row one tile further than the row before: seen through a view, nothing is copied.
                along = torch.arange(stop - start)[:, None] + torch.arange(most)
                near = bool((picks >= 0).all() and (block == block[0, 0] + along).all())
                a, b = at + start * SIDE, at + stop * SIDE
                # The first and the last row of tiles may be cut.
                for lo, hi in _inside(a, b, rows):
                    i, j = (lo - a) // SIDE, -(-(hi - a) // SIDE)
                    size = min(SIDE, hi - lo)
                    if near:
                        yield Tile(lo - rows[0], size, int(picks[i, 0]), picks.shape[1], j - i, only=only)
                    else:
                        yield Tile(lo - rows[0], size, 0, picks.shape[1], j - i, only=only, picks=picks[i:j], run=run)


def _inside(a: int, b: int, rows: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The rows [a, b), in runs of whole rows of tiles and ragged ends, as far as they are among `rows`."""
    cuts = {f for e in rows for f in (e, e // SIDE * SIDE, -(-e // SIDE) * SIDE)}  # `a` is a multiple of SIDE
    edges = sorted({a, b, *(e for e in cuts if a < e < b)})
    for lo, hi in zip(edges, edges[1:]):
        if rows[0] <= lo and hi <= rows[1]:
            yield lo, hi


def _runs(kind: list[int]) -> Iterator[tuple[int, int]]:
    """The maximal runs of equal values, those of -1 left out."""
    start = 0
    for i in range(1, len(kind) + 1):
        if i == len(kind) or kind[i] != kind[start]:
            if kind[start] != -1:
                yield start, i
            start = i


def _alike(sizes: list[int]) -> Iterator[tuple[int, int]]:
    """Runs that waste at most a quarter when each is filled up to its largest."""
    start = total = most = 0
    for i, size in enumerate(sizes):
        if i > start and max(most, size) * (i + 1 - start) > 1.25 * (total + size):
            yield start, i
            start, total, most = i, 0, 0
        total, most = total + size, max(most, size)
    if start < len(sizes):
        yield start, len(sizes)
