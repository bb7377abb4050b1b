"""One tile seen through strided views: the shapes that the kernel takes, with no key copied or repeated.

Rows of a job are (Hkv, G, rows, D): the G query heads that share a key-value head. A masked tile stacks the group's
heads as rows of one problem, (Hkv, count, G * rows, D). A tile that needs no mask, or the kernel's own causal one,
keeps them as heads of the same keys, (Hkv, G, rows, D), with the keys expanded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hf_longctx.attention import kernels
from hf_longctx.patterns.geometry import Tile


def _stacked(tile: Tile) -> bool:
    return not (tile.whole or tile.causal)


def slabs(tile: Tile, most: int) -> Iterator[tuple[int, Tile]]:
    """A tile's problems, at most `most` at once: (first problem, the tile of them)."""
    for t in range(0, tile.count, most):
        count = min(most, tile.count - t)
        yield t, Tile(tile.row + t * tile.step, tile.rows, 0, tile.keys, count, tile.low, tile.high)


def grouped(x: Tensor, batch: int, start: int, stop: int, kv_heads: int) -> Tensor:
    """Rows [start, stop) of one batch element of x (B, Hq, Lq, D) as (Hkv, G, rows, D)."""
    return x[batch, :, start:stop].unflatten(0, (kv_heads, -1))


def view(x: Tensor, tile: Tile) -> Tensor:
    """The tile's rows of x (Hkv, G, rows, D): (Hkv, count, G, rows, D) if stacked, else (Hkv, G, rows, D)."""
    x = x[:, :, tile.row : tile.stop]
    return x.unflatten(2, (tile.count, tile.rows)).transpose(1, 2) if _stacked(tile) else x


def problems(x: Tensor, tile: Tile) -> Tensor:
    """The tile's rows as the kernel takes them."""
    return view(x, tile).flatten(2, 3) if _stacked(tile) else view(x, tile)


def unstack(x: Tensor, tile: Tile, q: Tensor) -> Tensor:
    """What the kernel gave, in the shape of `view`."""
    return x.unflatten(2, (q.shape[1], tile.rows)) if _stacked(tile) else x


def keys(x: Tensor, tile: Tile, q: Tensor) -> Tensor:
    """The tile's keys; x (Hkv, Lk, D) starts at the first. Overlapping views (Hkv, count, keys, D) if stacked."""
    if not _stacked(tile):
        return x[:, None, : tile.keys].expand(-1, q.shape[1], -1, -1)
    return _windows(x, tile.keys, tile)


def _windows(x: Tensor, size: int, tile: Tile) -> Tensor:
    head, row, element = x.stride()
    shape = (x.shape[0], tile.count, size, x.shape[2])
    return x.as_strided(shape, (head, tile.step * row, row, element), x.storage_offset())


def add_keys(whole: Tensor, share: Tensor, tile: Tile) -> None:
    """Add the tile's key gradients to those of all keys; the windows overlap, so one step's width at a time."""
    if not _stacked(tile):
        whole[:, : tile.keys].add_(share.sum(1))
        return
    for j in range(0, tile.keys, tile.step):
        piece = share[:, :, j : j + tile.step]
        _windows(whole[:, j:], piece.shape[2], tile).add_(piece)


def mask(tile: Tile, q: Tensor) -> dict[str, Any]:
    """The kernel's arguments that hide what the tile does not hold; one mask serves all problems."""
    if tile.whole:
        return {}
    if tile.causal:
        return {"causal": True}
    difference = torch.arange(tile.rows)[:, None] - torch.arange(tile.keys)
    hidden = torch.zeros_like(difference, dtype=torch.bool)
    if tile.low is not None:
        hidden |= difference < tile.low
    if tile.high is not None:
        hidden |= difference >= tile.high
    mask = torch.zeros(hidden.shape, dtype=kernels.mask_dtype(q.dtype)).masked_fill_(hidden, float("-inf"))
    return {"mask": mask.repeat(q.shape[1], 1)}
