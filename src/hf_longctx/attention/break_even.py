"""From how many keys the tiled engine is the faster, by the calls and pairs that a pattern lowers to."""

from __future__ import annotations

from functools import lru_cache

from hf_longctx.attention.tiled import pieces_of
from hf_longctx.patterns import Pattern
from hf_longctx.patterns.pieces import Piece
from hf_longctx.patterns.tiles import lower

#: What a tile costs beside its pairs, in pairs of a row and a key; `evals/bench/break_even.py` measures what follows.
CALL = 25_000
#: The same where heads differ, so that each has its tiles to itself and its pairs are a third of all.
CALL_BY_HEAD = 3 * CALL
#: Fewer keys than this are never tiled: there is nothing to gain.
FEWEST = 128
#: From so many keys on everything is tiled.
MOST = 2048


def dense_is_faster(pattern: Pattern, rows: int, keys: int) -> bool:
    """Whether one dense call under a mask costs less than the pattern's tiles.

    Args:
        pattern: who may see whom.
        rows: number of queries, the last of the keys.
        keys: number of keys.

    >>> from hf_longctx.patterns import parse
    >>> [n for n in (128, 256, 384, 1024) if dense_is_faster(parse("strided:64,64"), n, n)]
    [128, 256]
    """
    if not FEWEST <= keys < MOST:
        return keys < FEWEST
    each = CALL_BY_HEAD if pattern.by_head else CALL
    return each + rows * keys < _cost(pieces_of(pattern), rows, keys, each)


@lru_cache(maxsize=1024)
def _cost(pieces: tuple[Piece, ...], rows: int, keys: int, each: int) -> int:
    """Pairs that the tiles compute, and what their calls cost."""
    tiles = lower(pieces, (keys - rows, keys), (0, keys))
    return sum(each + tile.problems * tile.rows * tile.keys for tile in tiles)
