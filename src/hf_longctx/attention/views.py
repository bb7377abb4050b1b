"""One tile seen through strided views: the shapes that the kernel takes.

Rows of a job are (Hkv, G, rows, D): the G query heads that share a key-value head. Everything about a tile has the
dimensions (Hkv, copies, count, G) and then two more: rows (..., rows, D), and keys (..., 1, keys, D), which all heads
of a group read. All are views; keys are copied only where the tile names them one by one. The kernel takes two leading
dimensions, so that it is called once for each index of the others (`batches`).

Backward rows may be stacked, (Hkv, copies, count, 1, G * rows, D): a copy, but the gradients of a group's keys are
then summed within the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from hf_longctx.attention import kernels
from hf_longctx.patterns.tiles import Tile

#: Up to so many rows a batch of triangles is cheaper stacked under one mask.
_SMALL = 256
#: An index of the leading dimensions that leaves two of them.
Index = tuple[int | slice, ...]


def slabs(tile: Tile, most: int) -> Iterator[Tile]:
    """The tile's problems, at most `most` at once."""
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


def batches(sizes: tuple[int, ...]) -> Iterator[Index]:
    """Indices of (Hkv, copies, count, G), each of which leaves two of them whole.

    These are the problems and the group, whose heads read the same keys one after the other; without a group, or for
    one problem alone, the key-value heads.

    >>> [index[:2] for index in batches((2, 1, 5, 3))], [index[1:3] for index in batches((8, 4, 3, 1))]
    ([(0, 0), (1, 0)], [(slice(None, None, None), 0), (slice(None, None, None), 1), (slice(None, None, None), 2)])
    """
    heads, copies, count, group = sizes
    whole = (0, 3) if copies == count == 1 else (1 if copies > count else 2, 3 if group > 1 else 0)
    return product(*((slice(None),) if d in whole else range(sizes[d]) for d in range(4)))


def rows(x: Tensor, tile: Tile) -> Tensor:
    """The tile's rows of x (Hkv, G, L, D): (Hkv, copies, count, G, rows, D), a view."""
    head, group, row, element = x.stride()
    return x.as_strided(
        (x.shape[0], tile.copies, tile.count, x.shape[1], tile.rows, x.shape[3]),
        (head, row, tile.step * row, group, tile.spacing * row, element),
        x.storage_offset() + tile.row * row,
    )


def stacked(x: Tensor) -> Tensor:
    """Rows with the heads of a group one after the other: (Hkv, copies, count, 1, G * rows, D)."""
    return x.flatten(3, 4).unsqueeze(3)


def stacks(tile: Tile) -> bool:
    """Whether stacking pays in the backward pass: not for large problems that need no table of a mask."""
    return not (tile.whole or tile.causal) or tile.problems > 1 and tile.rows <= _SMALL


def keys(x: Tensor, tile: Tile, unread: Tensor | None = None) -> Tensor:
    """The tile's keys of x (Hkv, L, D), which starts at the span's first: (Hkv, copies, count, 1, keys, D).

    Overlapping views. Keys named one by one are copied, those that no row reads (`unread`, (problems, keys)) as 0.
    """
    if tile.picks is None:
        return _windows(x, tile, 0, tile.keys)
    runs = x[:, : x.shape[1] // tile.run * tile.run].unflatten(1, (-1, tile.run))
    chosen = tile.picks[:, :: tile.run].clamp(min=0).flatten().to(x.device) // tile.run
    copied = runs.index_select(1, chosen).view(x.shape[0], *tile.picks.shape, x.shape[2])
    if unread is not None:
        some = unread.any(1).nonzero()[:, 0]
        copied[:, some] = copied[:, some].masked_fill(unread[some, :, None], 0)
    return copied[:, None, :, None]


def _windows(x: Tensor, tile: Tile, start: int, size: int) -> Tensor:
    head, row, element = x.stride()
    return x.as_strided(
        (x.shape[0], tile.copies, tile.count, 1, size, x.shape[2]),
        (head, row, tile.step * row, 0, tile.spacing * row, element),
        x.storage_offset() + (tile.key + start * tile.spacing) * row,
    )


def add_keys(whole: Tensor, share: Tensor, tile: Tile, index: Index) -> None:
    """Add a call's gradients of keys to those of all keys; windows overlap, so one step's width at a time.

    Args:
        whole: (Hkv, L, D), from the span's first key on.
        share: what the kernel gave, its leading dimensions as `index` leaves them.
        tile: the tile.
        index: one of `batches`.
    """
    if tile.picks is not None:
        picks = tile.picks.to(whole.device)
        used = picks >= 0
        # Heads and problems are the only dimensions here, so that one call has all of them.
        share = share.reshape(whole.shape[0], *picks.shape, whole.shape[-1])
        whole.index_add_(1, picks[used], share[:, used].to(whole.dtype))
        return
    group = index[3]
    if isinstance(group, slice):
        share = share.sum(1, keepdim=True)  # the group is the last of the leading dimensions
    at = (*index[:3], group if isinstance(group, slice) else 0)
    width = tile.keys if tile.count == 1 else tile.step // tile.spacing
    for j in range(0, tile.keys, width):
        piece = share[:, :, j : j + width]
        _windows(whole, tile, j, piece.shape[2])[at].add_(piece)


@dataclass(frozen=True)
class Mask:
    """What hides the pairs of a tile from the kernel.

    Attributes:
        causal: whether row i of each problem sees its keys up to i.
        bias: what is added to the scores, (rows, keys), or (1, copies, count, 1, rows, keys) where each problem has
            its own; with `some` of these alone, (n, rows, keys).
        blind: rows that see nothing, (rows, 1) or (1, copies, count, 1, rows, 1), or None.
        unread: keys that no row sees, (problems, keys), or None.
        empty: whether nothing is seen at all.
        some: the problems that hide something, (n,) int64, where most do not.
    """

    causal: bool = False
    bias: Tensor | None = None
    blind: Tensor | None = None
    unread: Tensor | None = None
    empty: bool = False
    some: Tensor | None = None

    def lit(self, x: Tensor, index: Index, sizes: tuple[int, ...]) -> Tensor:
        """The rows of a call with those that see nothing as 0: they may hold anything, and 0 * NaN is NaN."""
        return x if self.blind is None else x.masked_fill(_of(self.blind, index, sizes), 0)

    def dark(self, out: Tensor, lse: Tensor, index: Index, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """What a call gave, (..., rows, D) and (..., rows, 1), with 0 and -inf where nothing is seen.

        What kernels give there differs: 0 or NaN, and any log-sum-exp.
        """
        if self.blind is None:
            return out, lse
        blind = _of(self.blind, index, sizes)
        return out.masked_fill_(blind, 0), lse.masked_fill(blind, float("-inf"))


def _of(x: Tensor, index: Index, sizes: tuple[int, ...]) -> Tensor:
    """What of a mask belongs to a call."""
    return x if x.dim() == 2 else x.expand(*sizes, *x.shape[4:])[index]


def mask(tile: Tile, row: int, key: int, q: Tensor, stack: int = 1) -> Mask:
    """The mask of a tile of a run that starts at the logical positions `row` and `key`.

    One mask for all problems is small and made on the CPU, where looking at it makes no one wait; masks of each
    problem's own are made where the queries are, and only for the problems that may hide something.

    Args:
        tile: the tile.
        row: logical position of the run's first row.
        key: logical position of the span's first key.
        q: the job's queries, (Hkv, G, L, D).
        stack: how many heads are stacked.
    """
    if tile.whole:
        return Mask()
    if tile.causal and stack == 1:
        return Mask(causal=True)
    some = None
    if tile.picks is not None and not tile.shared:
        some = tile.hiding(row, key)
        some = some if 2 * len(some) < tile.count else None
    seen = tile.seen(row, key, device=torch.device("cpu") if tile.shared else q.device, among=some)
    if not seen.numel() or bool(seen.all()):
        return Mask()
    lit, read = seen.any(-1), seen.any(-2)
    blind = None if bool(lit.all()) else ~lit.repeat(*(1,) * (lit.dim() - 1), stack)[..., None]
    unread = ~read.view(-1, tile.keys) if tile.picks is not None and not bool(read.all()) else None
    empty = some is None and not bool(lit.any())
    blind, unread = (None if x is None else _among(x.to(q.device), some, tile.problems) for x in (blind, unread))
    bias = kernels.bias(seen, q, stack)
    own = (1, tile.copies, tile.count, 1)
    return Mask(
        bias=bias if some is not None or bias.dim() == 2 else bias.view(*own, *bias.shape[1:]),
        blind=blind if blind is None or blind.dim() == 2 else blind.view(*own, *blind.shape[1:]),
        unread=unread,
        empty=empty,
        some=some,
    )


def _among(x: Tensor, some: Tensor | None, problems: int) -> Tensor:
    """What is so for `some` problems, (n, ...) bool, among all of them."""
    if some is None:
        return x
    return x.new_zeros((problems, *x.shape[1:])).index_copy_(0, some.to(x.device), x)


def call(
    run: Callable[..., tuple[Tensor, ...]], inputs: list[Tensor], mask: Mask, index: Index, sizes: tuple[int, ...]
) -> tuple[Tensor, ...]:
    """Run the kernel on a batch of problems.

    Args:
        run: takes the inputs, and the kernel's `causal` or `mask`.
        inputs: what `batches` left of rows and keys.
        mask: the tile's.
        index: which batch this is.
        sizes: (Hkv, copies, count, G).
    """
    if mask.bias is None:
        return run(*inputs, causal=mask.causal)
    if mask.some is None:
        return run(*inputs, mask=_of(mask.bias, index, sizes))
    # Independent problems: run all without a mask, then those that need one, which cost little.
    at = 1 if isinstance(index[0], slice) else 0  # the problems are the other dimension left
    some = mask.some.to(mask.bias.device)
    again = run(*(x.index_select(at, some) for x in inputs), mask=mask.bias.unsqueeze(1 - at))
    return tuple(x.index_copy_(at, some, y) for x, y in zip(run(*inputs, causal=False), again))
