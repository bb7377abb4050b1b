"""Which tiles of a pattern known by its rule alone are full, partial and empty, found without an n x n matrix."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from hf_longctx.patterns.geometry import Own

#: Side of a tile in tokens.
SIDE = 64
#: Rows looked at together.
_ROWS = 16 * SIDE
#: Keys looked at together.
_KEYS = 32 * SIDE


def kinds(own: Own, rows: tuple[int, int], keys: tuple[int, int]) -> Iterator[tuple[int, list[Tensor], list[Tensor]]]:
    """For each stretch of rows: its first row, and for each row of tiles in it the full and the partial tiles.

    Tiles are counted in logical positions, from 0. A tile that is empty, or has no key among `keys`, is left out.
    """
    low, high = keys[0] // SIDE, -(-keys[1] // SIDE)
    for start in range(rows[0] // _ROWS * _ROWS, rows[1], _ROWS):
        full: list[Tensor] = []
        partly: list[Tensor] = []
        for row in _look(own, start, min(start + _ROWS, rows[1]), low):
            for lists, kind in ((full, 2), (partly, 1)):
                at = (row == kind).nonzero()[:, 0] + low
                lists.append(at[at < high])
        yield start, full, partly


@lru_cache(maxsize=4096)
def _look(own: Own, start: int, stop: int, low: int) -> Tensor:
    """A uint8 table (rows of tiles, tiles from `low` on) for the rows [start, stop): 0 empty, 1 partial, 2 full.

    Remembered by stretch, not by length: a longer input looks at its new rows only. The rule is never asked about a
    position that does not exist.
    """
    q = torch.arange(start, stop)[:, None]
    parts = [torch.zeros(-(-len(q) // SIDE), 0, dtype=torch.uint8)]
    for first in range(low * SIDE, stop, _KEYS):
        k = torch.arange(first, min(first + _KEYS, stop))[None]
        held = own.holds(q, k).expand(len(q), k.shape[1])
        # Keys past the last row lie ahead of every row: not seen, and a tile with one of them is not full.
        held = pad(held, (0, -k.shape[1] % SIDE), value=False)
        some, every = (
            pad(held, (0, 0, 0, -len(q) % SIDE), value=value).unflatten(1, (-1, SIDE)).unflatten(0, (-1, SIDE))
            for value in (False, True)
        )
        parts.append(some.any(3).any(1).to(torch.uint8) + every.all(3).all(1).to(torch.uint8))
    return torch.cat(parts, dim=1)
