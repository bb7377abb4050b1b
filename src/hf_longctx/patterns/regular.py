"""Cutting strips, blocks and spaced shapes into tiles that are seen through views alone.

Limited to a rectangle of logical positions, a strip becomes a growing triangle, a row of equal chunks and a tail;
small blocks become stairs, batched over the blocks, and large ones a strip each; a spaced shape becomes its inner
one's tiles, batched over the residue classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hf_longctx.patterns.geometry import Blocks, Segments, Shape, Spaced, Strip
from hf_longctx.patterns.tile import Tile

#: Rows past which blocks are taken one by one, as causal attention. Measured on CPU at 8K and 16K: stairs of many
#: blocks at once are 3 to 11% faster at 1024 rows, and take 1.2 to 1.3 times as long at 2048 and 4096.
_LARGE = 1024


def regular(
    shape: Shape,
    rows: tuple[int, int],
    keys: tuple[int, int],
    chunk: int | None,
    backward: bool,
    batched: bool = False,
) -> Iterator[Tile]:
    """The tiles of a strip, of blocks or of a spaced shape. Arguments as in `tiles.lower`.

    `batched` keeps large blocks in batches too: the better where what other pieces hold is cut out of the tiles.
    """
    if isinstance(shape, Strip):
        yield from _strip(shape, rows, keys, chunk, backward)
    elif isinstance(shape, Blocks):
        yield from _blocks(shape, rows, keys, chunk, backward, batched)
    elif isinstance(shape, Spaced):
        yield from _spaced(shape, rows, keys, chunk, backward, batched)
    elif isinstance(shape, Segments):
        yield from _segments(shape, rows, keys, chunk, backward, batched)


def chunk_for(width: int, *, backward: bool = False) -> int:
    """Rows of one problem of a band of `width` keys: enough to be efficient, few enough to waste little.

    Measured on CPU with 1, 3 and 4 query heads a group, 64 to 4096 keys: within 10% of the best. Backward adds up
    overlapping gradients of keys, (width / chunk) of them for each key, which is the better for fewer and larger ones.
    """
    if backward:
        return 64 if width < 1024 else 128
    return 32 if width < 512 else 64


def _strip(
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


def _blocks(
    shape: Blocks, rows: tuple[int, int], keys: tuple[int, int], chunk: int | None, backward: bool, batched: bool
) -> Iterator[Tile]:
    size, behind = shape.size, shape.size * shape.previous
    # Small blocks are taken several at a time, under a mask.
    unit = size if size >= 64 else size * -(-64 // size)
    step = min(unit, chunk or max(128 if backward else 64, size // 16))
    # Later rows have left the keys behind.
    first, stop = max(rows[0], keys[0]), min(rows[1], ((keys[1] - 1) // size + shape.previous + 1) * size)
    if first >= stop or keys[0] >= keys[1]:
        return
    # Up to here rows see all keys before them.
    growing = (keys[0] // size + shape.previous + 1) * size
    if not batched and max(size, stop - first if stop <= growing else 0) > (chunk or _LARGE):
        yield from _runs(shape, (first, stop), rows[0], keys, chunk, backward)
        return
    if shape.previous and unit == size and not batched and first < growing:
        # One triangle, in place of many small stairs of one block each.
        yield from _runs(shape, (first, min(growing, stop)), rows[0], keys, chunk, backward)
        first = min(growing, stop)

    def stairs(at: int, count: int) -> Iterator[Tile]:
        for a in range(at, at + unit, step):
            lo, hi = max(a, first), min(a + step, at + unit, stop)
            if lo >= hi:
                continue
            k0, k1 = max((lo // size) * size - behind, keys[0]), min(hi, keys[1])
            yield Tile(
                lo - rows[0],
                hi - lo,
                k0 - keys[0],
                k1 - k0,
                count,
                low=k0 - lo if k1 > lo + 1 else None,
                step=unit,
                only=shape if lo // size != (hi - 1) // size else None,
            )

    whole = max(-(-first // unit), -(-(keys[0] + behind) // unit))
    last = max(whole, min(stop, keys[1]) // unit)
    for number in range(first // unit, -(-stop // unit)):
        if whole <= number < last:
            if number == whole:
                yield from stairs(number * unit, last - whole)
        else:
            yield from stairs(number * unit, 1)


def _runs(
    shape: Blocks, run: tuple[int, int], row: int, keys: tuple[int, int], chunk: int | None, backward: bool
) -> Iterator[Tile]:
    """The rows of `run`, each block as a strip; as one strip while all keys are seen."""
    first, stop = run
    while first < stop:
        start = max((first // shape.size - shape.previous) * shape.size, keys[0])
        edge = min((start // shape.size + shape.previous + 1) * shape.size, stop)
        for tile in _strip(Strip(), (first, edge), (start, min(edge, keys[1])), chunk, backward):
            yield replace(tile, row=tile.row + first - row, key=tile.key + start - keys[0])
        first = edge


def _spaced(
    shape: Spaced, rows: tuple[int, int], keys: tuple[int, int], chunk: int | None, backward: bool, batched: bool
) -> Iterator[Tile]:
    spacing = shape.spacing
    # Classes between two of these residues have equally many rows and keys.
    edges = sorted({0, spacing, *(x % spacing for x in (*rows, *keys))})
    for c, end in zip(edges, edges[1:]):
        (r0, r1), (k0, k1) = ([-((c - x) // spacing) for x in pair] for pair in (rows, keys))
        for tile in regular(shape.inner, (r0, r1), (k0, k1), chunk, backward, batched):
            yield replace(
                tile,
                row=(r0 + tile.row) * spacing + c - rows[0],
                key=(k0 + tile.key) * spacing + c - keys[0],
                step=tile.step * spacing,
                spacing=spacing,
                copies=end - c,
                only=None if tile.only is None else Spaced(tile.only, spacing),  # type: ignore[arg-type]
            )


def _segments(
    shape: Segments, rows: tuple[int, int], keys: tuple[int, int], chunk: int | None, backward: bool, batched: bool
) -> Iterator[Tile]:
    size, spacing = shape.size, shape.spacing
    if size % spacing == 0 and not shape.after:
        # Each class is cut into equal blocks.
        yield from _spaced(Spaced(Blocks(size // spacing), spacing), rows, keys, chunk, backward, batched)
        return
    comb, part = Spaced(Strip(), spacing), shape.after or size
    for a in range(rows[0] // part * part, rows[1], part):
        start = a // size * size
        r0, r1 = max(rows[0], a), min(rows[1], a + part)
        k0, k1 = max(keys[0], start), min(keys[1], a if shape.after else a + size)
        if k0 < k1:
            for tile in _spaced(comb, (r0, r1), (k0, k1), chunk, backward, batched):
                yield replace(tile, row=tile.row + r0 - rows[0], key=tile.key + k0 - keys[0])
