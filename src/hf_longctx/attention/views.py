"""One tile seen through strided views: the shapes that the kernel takes.

Rows of a job are (Hkv, G, rows, D): the G query heads that share a key-value head. A batch of problems stacks the
group's heads as rows of one problem, (Hkv, problems, G * rows, D), so that no key is repeated. A single large problem
that needs no mask, or the kernel's own causal one, keeps them as heads of the same keys, (Hkv, G, rows, D), with the
keys expanded. Keys are views, never copies, unless the tile names them one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_longctx.attention import kernels
from hf_longctx.patterns.tiles import Tile

#: Up to so many rows a triangle is cheaper as a batch under one mask than problem by problem.
_SMALL = 256


def _alone(tile: Tile) -> bool:
    return tile.problems == 1 and (tile.whole or tile.causal)


def slabs(tile: Tile, most: int) -> Iterator[Tile]:
    """The tile's problems, at most `most` at once."""
    if tile.causal and tile.rows > _SMALL:
        most = 1
    if tile.count <= most:
        each = max(1, most // tile.count)
        for c in range(0, tile.copies, each):
            yield tile.part(c, min(each, tile.copies - c), 0, tile.count)
        return
    for c in range(tile.copies):
        for t in range(0, tile.count, most):
            yield tile.part(c, 1, t, min(most, tile.count - t))


def grouped(x: Tensor, batch: int, heads: range, start: int, stop: int, group: int) -> Tensor:
    """Rows [start, stop) of one batch element and a range of key-value heads of x (B, Hq, Lq, D): (H, G, rows, D)."""
    return x[batch, heads.start * group : heads.stop * group, start:stop].unflatten(0, (len(heads), group))


def view(x: Tensor, tile: Tile) -> Tensor:
    """The tile's rows of x (Hkv, G, L, D): (Hkv, copies, count, G, rows, D), or (Hkv, G, rows, D) of one alone."""
    if _alone(tile):
        last = tile.row + (tile.rows - 1) * tile.spacing + 1
        return x[:, :, tile.row : last : tile.spacing]
    head, group, row, element = x.stride()
    return x.as_strided(
        (x.shape[0], tile.copies, tile.count, x.shape[1], tile.rows, x.shape[3]),
        (head, row, tile.step * row, group, tile.spacing * row, element),
        x.storage_offset() + tile.row * row,
    )


def problems(x: Tensor, tile: Tile) -> Tensor:
    """The tile's rows as the kernel takes them."""
    x = view(x, tile)
    return x if _alone(tile) else x.reshape(x.shape[0], tile.problems, -1, x.shape[-1])


def unstack(x: Tensor, tile: Tile, q: Tensor) -> Tensor:
    """What the kernel gave, in the shape of `view`."""
    return x if _alone(tile) else x.unflatten(2, (q.shape[1], tile.rows)).unflatten(1, (tile.copies, tile.count))


def keys(x: Tensor, tile: Tile, q: Tensor, unread: Tensor | None = None) -> Tensor:
    """The tile's keys of x (Hkv, L, D), which starts at the span's first: (Hkv, problems, keys, D).

    Overlapping views, (Hkv, copies, count, keys, D) where these two cannot be one dimension. Keys named one by one are
    copied, those that no row reads (`unread`, (problems, keys)) as 0.
    """
    if tile.picks is not None:
        copied = x[:, tile.picks.clamp(min=0).to(x.device)]
        if unread is not None:
            some = unread.any(1).nonzero()[:, 0]
            copied[:, some] = copied[:, some].masked_fill(unread[some, :, None], 0)
        return copied
    windows = _windows(x, tile, 0, tile.keys)
    if _alone(tile):
        return windows[:, 0].expand(-1, q.shape[1], -1, -1)
    return windows[:, 0] if tile.copies == 1 else windows[:, :, 0] if tile.count == 1 else windows


def _windows(x: Tensor, tile: Tile, start: int, size: int) -> Tensor:
    head, row, element = x.stride()
    return x.as_strided(
        (x.shape[0], tile.copies, tile.count, size, x.shape[2]),
        (head, row, tile.step * row, tile.spacing * row, element),
        x.storage_offset() + (tile.key + start * tile.spacing) * row,
    )


def add_keys(whole: Tensor, share: Tensor, tile: Tile) -> None:
    """Add the tile's key gradients to those of all keys; windows overlap, so one step's width at a time."""
    if tile.picks is not None:
        picks = tile.picks.to(whole.device)
        used = picks >= 0
        whole.index_add_(1, picks[used], share[:, used].to(whole.dtype))
        return
    if _alone(tile):
        share = share.sum(1, keepdim=True)
    share = share.unflatten(1, (tile.copies, tile.count))
    width = tile.keys if tile.count == 1 else tile.step // tile.spacing
    for j in range(0, tile.keys, width):
        piece = share[:, :, :, j : j + width]
        _windows(whole, tile, j, piece.shape[3]).add_(piece)


@dataclass(frozen=True)
class Mask:
    """What hides the pairs of a tile from the kernel.

    Attributes:
        how: the kernel's arguments.
        blind: rows that see nothing, (1 or problems, G * rows, 1), or None.
        unread: keys that no row sees, (problems, keys), or None.
        empty: whether nothing is seen at all.
        some: the problems that `how` is for where the others see everything, (n,) int64, or None.
    """

    how: dict[str, Any]
    blind: Tensor | None = None
    unread: Tensor | None = None
    empty: bool = False
    some: Tensor | None = None


def mask(tile: Tile, q: Tensor, row: int, key: int) -> Mask:
    """The mask of a tile of a run that starts at the logical positions `row` and `key`.

    One mask for all problems is small and made on the CPU, where looking at it makes no one wait; masks of each
    problem's own are made where the queries are, and only for the problems that hide something.
    """
    if tile.whole:
        return Mask({})
    if tile.causal and _alone(tile):
        return Mask({"causal": True})
    seen = tile.seen(row, key, device=torch.device("cpu") if tile.shared else q.device)
    some = None
    if seen.dim() == 3 and tile.picks is not None:
        hiding = (~seen.flatten(1).all(1)).nonzero()[:, 0]
        if 2 * len(hiding) < len(seen):
            some, seen = hiding, seen[hiding]
    if not seen.numel() or bool(seen.all()):
        return Mask({})
    lit, read = seen.any(-1), seen.any(-2)
    group = q.shape[1]
    blind = None if bool(lit.all()) else ~lit.repeat(*(1,) * (lit.dim() - 1), group).view(-1, group * tile.rows, 1)
    unread = ~read.view(-1, tile.keys) if tile.picks is not None and not bool(read.all()) else None
    empty = some is None and not bool(lit.any())
    blind, unread = (None if x is None else _among(x.to(q.device), some, tile.problems) for x in (blind, unread))
    return Mask({"mask": kernels.bias(seen, q, group)}, blind, unread, empty, some)


def _among(x: Tensor, some: Tensor | None, problems: int) -> Tensor:
    """What is so for `some` problems, (n, ...) bool, among all of them."""
    if some is None:
        return x
    return x.new_zeros((problems, *x.shape[1:])).index_copy_(0, some, x)


def call(run: Callable[..., tuple[Tensor, ...]], rows: list[Tensor], keys: list[Tensor], how: Mask) -> list[Tensor]:
    """Run the kernel on a batch of problems, by head or by copy where the keys have a dimension too many.

    Args:
        run: takes rows, keys and values, and the kernel's arguments.
        rows: what has the rows' shape, (Hkv, problems, ...).
        keys: keys and values, (Hkv, problems, keys, D) or (Hkv, copies, count, keys, D).
        how: the mask.

    Returns:
        What the kernel gave, (Hkv, problems, ...) each.
    """
    bias: Tensor | None = how.how.get("mask")
    each = bias if bias is not None and bias.dim() == 3 else None
    if how.some is not None and each is not None:
        # Independent problems: run all without a mask, then those that need one, which cost little.
        whole = list(run(*rows, *keys))
        again = run(*(x[:, how.some] for x in (*rows, *keys)), mask=each[None])
        return [x.index_copy(1, how.some, y) for x, y in zip(whole, again)]
    if keys[0].dim() == 4:
        return list(run(*rows, *keys, **(how.how if each is None else {"mask": each[None]})))
    heads, copies, count = keys[0].shape[:3]
    inputs = [*(x.unflatten(1, (copies, count)) for x in rows), *keys]
    each = None if each is None else each.unflatten(0, (copies, count))
    if heads <= copies:
        masks = how.how if each is None else {"mask": each}
        parts = [run(*(x[h] for x in inputs), **masks) for h in range(heads)]
        return [torch.stack(x).flatten(1, 2) for x in zip(*parts)]
    parts = [
        run(*(x[:, c] for x in inputs), **(how.how if each is None else {"mask": each[c][None]}))
        for c in range(copies)
    ]
    return [torch.stack(x, 1).flatten(1, 2) for x in zip(*parts)]
