"""The engine: runs a pattern's pieces as dense problems on views, and knows no pattern by name.

Each run of contiguous real tokens of one document is cut into tiles (`patterns.tiles`). A tile is a batch of equal
dense problems, which the flash kernel sees through strided views. Keys and values are never repeated, as all query
heads of a group read one view, and copied only where a pattern names keys one by one. Tiles are disjoint, so results
for the same row merge exactly by log-sum-exp, as flash attention does with its own blocks (Dao et al. 2022, arXiv
2205.14135, section 3.1). Backward calls each tile's flash backward with the merged output and
log-sum-exp; the sum over tiles is the exact gradient. Nothing of size n x n exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from hf_longctx.attention import kernels, sink, views
from hf_longctx.attention.jobs import Job, all_jobs, real_tokens
from hf_longctx.attention.layout import Layout
from hf_longctx.attention.request import Request, tracked
from hf_longctx.compiling import eager
from hf_longctx.patterns import Pattern
from hf_longctx.patterns.geometry import shapes_of
from hf_longctx.patterns.pieces import Piece, disjoint
from hf_longctx.patterns.tiles import Tile, lower

#: Rows times heads of a band run in one kernel call: copies of queries and outputs stay this small.
_SLAB = 1 << 16
#: Key gradients of a band held at once, in elements: as many as the queries have, within these bounds. They overlap
#: from problem to problem, so that together they are many times the size of the keys.
_GRADIENTS = 1 << 20, 1 << 22
#: Elements of masks, and of copied keys, held at once where each problem has its own.
_OWN = 1 << 21


@dataclass(frozen=True)
class _Work:
    """What is to be done: the jobs, and the pieces that each range of key-value heads sees."""

    jobs: tuple[Job, ...]
    pieces: tuple[tuple[range, tuple[Piece, ...]], ...]
    scale: float

    def each(self) -> Iterator[tuple[Job, range, tuple[Piece, ...]]]:
        """Every job with every range of heads."""
        for job in self.jobs:
            for heads, pieces in self.pieces:
                yield job, heads, pieces


@dataclass(frozen=True)
class _At:
    """Where a tile is: the first stored key of its span, and the logical positions of first row and key."""

    first: int
    row: int
    key: int


def _tiles(job: Job, pieces: tuple[Piece, ...], *, backward: bool = False) -> Iterator[tuple[_At, Tile]]:
    """A job's tiles. Every pair of row and key that may see one another is in one of them, and in one only."""
    for first, rows, keys in job.spans:
        for tile in lower(pieces, rows, keys, backward=backward):
            yield _At(first, rows[0], keys[0]), tile


def _parts(tile: Tile, at: _At, q: Tensor, most: int, stack: int = 1) -> Iterator[tuple[Tile, views.Mask]]:
    """The tile a slab at a time, each with its mask for so many stacked heads; what sees nothing is left out."""
    shared, size = tile.shared, tile.keys * max(q.shape[-1] if tile.picks is not None else 0, 1)
    if not shared:
        size = max(size, tile.keys * tile.rows * q.shape[1])
    if not shared or tile.picks is not None:
        most = min(most, max(1, _OWN // size))
    mask: views.Mask | None = None
    for part in views.slabs(tile, most):
        if mask is None or not shared:
            mask = views.mask(part, at.row, at.key, q, stack)
        if not mask.empty:
            yield part, mask


def cannot(request: Request) -> str | None:
    """Why this engine cannot compute this, and what can; None if it can. It can compute every pattern."""
    reason = kernels.missing(request.device, request.dtype)
    return reason if reason or request.sizes is None else kernels.misfit(*request.sizes)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern,
    layout: Layout,
    *,
    scale: float,
    layer: int = 0,
    head: int = 0,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention by tiles. Arguments and result as in `reference.attend`; ask `cannot` first.

    Extra memory is about that of the queries and the output, forward; never n x n.
    """
    heads = range(key.shape[1])
    groups = [range(h, h + 1) for h in heads] if pattern.by_head else [heads]
    pieces = tuple((g, pieces_of(pattern, layer, head + g.start)) for g in groups)
    batch = query.shape[0]
    jobs = layout.remember(("jobs", batch), lambda: all_jobs(layout, batch))
    if jobs is not None:
        return _run(query, key, value, _Work(jobs, pieces, scale), sinks)

    # Padding between real tokens: run each row on its real tokens alone.
    outs = []
    each = layout.remember(("real", batch, query.device), lambda: real_tokens(layout, batch, query.device))
    for b, (real, here, own) in enumerate(each):
        q, k, v = (x[b : b + 1, :, at] for x, at in ((query, here), (key, real), (value, real)))
        part = _run(q, k, v, _Work(own, pieces, scale), sinks)
        blank = query.new_zeros(1, query.shape[1], layout.queries, value.shape[-1])
        outs.append(blank.index_copy(2, here, part))
    return torch.cat(outs)


def pieces_of(pattern: Pattern, layer: int = 0, head: int = 0) -> tuple[Piece, ...]:
    """The disjoint pieces that a pattern lowers to: its own shapes, or what its rule shows."""
    return disjoint(shapes_of(pattern, layer, (head,))[0])


# ---------------------------------------------------------------------- running jobs


def _run(query: Tensor, key: Tensor, value: Tensor, work: _Work, sinks: Tensor | None) -> Tensor:
    size = query.shape[-1]
    if wider := kernels.fill(size, query.device):
        # Filled up once here, or else once for each problem that reads a key.
        query, key, value = (pad(x, (0, wider)) for x in (query, key, value))
        return _run(query, key, value, work, sinks)[..., :size]
    if tracked(query, key, value, sinks):
        return _Tiled.apply(query, key, value, sinks, work)
    return _forward(query, key, value, sinks, work)[0]


class _Tiled(torch.autograd.Function):
    """`_forward` with `_backward` as its gradient."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, work: _Work) -> Tensor:
        out, lse = _forward(query, key, value, sinks, work)
        ctx.save_for_backward(query, key, value, sinks, out, lse)
        ctx.work = work
        return out

    @staticmethod
    @eager
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, sinks, out, lse = ctx.saved_tensors
        own = None
        if ctx.needs_input_grad[3]:
            own = sink.gradient(grad, out, lse, sinks[:, None])[:, 0]
        return (*_backward(grad, query, key, value, out, lse, ctx.work), own, None)


def _forward(query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, work: _Work) -> tuple[Tensor, Tensor]:
    """Output (B, Hq, Lq, D), laid out as (B, Lq, Hq, D), and log-sum-exp (B, Hq, Lq), -inf for rows with no key."""
    batch, heads, rows, size = query.shape
    group = heads // key.shape[1]
    dtype = exact = torch.promote_types(query.dtype, torch.float32)
    if (
        sinks is None
        and query.dtype != exact
        and not any(sum(t.rows * t.problems for _, t in _tiles(job, p)) > job.rows for job, _, p in work.each())
    ):
        dtype = query.dtype  # without merges, each of which would round once more; a sink is one
    # Where every row has a job nothing is set to 0 beforehand: that takes as long as copying the result.
    make = query.new_empty if sum(job.rows for job in work.jobs) == batch * rows else query.new_zeros
    out = make((batch, rows, heads, size), dtype=dtype).transpose(1, 2)
    lse = query.new_full((batch, heads, rows), float("-inf"), dtype=exact)
    run = partial(kernels.forward, scale=work.scale)
    for job, own, pieces in work.each():
        q, o, total = (
            views.grouped(x, job.batch, own, job.row, job.row + job.rows, group) for x in (query, out, lse[..., None])
        )
        k, v = (x[job.batch, own.start : own.stop] for x in (key, value))
        touched = torch.zeros(1, 1, job.rows, 1, dtype=torch.bool)  # on the CPU: what to do next depends on it
        for at, tile in _tiles(job, pieces):
            for part, mask in _parts(tile, at, q, _most(_SLAB, max(len(own), group) * tile.rows)):
                some, into, norms = (views.rows(x, part) for x in (q, o, total))
                seen = views.rows(touched, part)
                fresh = not bool(seen.any())
                if not fresh and not bool(seen.all()):
                    into.masked_fill_(~seen.to(into.device), 0)
                seen.fill_(True)
                sizes = some.shape[:4]
                read = [views.keys(x[:, at.first :], part, mask.unread).expand(*sizes, -1, -1) for x in (k, v)]
                for index in views.batches(sizes):
                    inputs = [mask.lit(some[index], index, sizes), *(x[index] for x in read)]
                    one, norm = views.call(run, inputs, mask, index, sizes)
                    _merge(into[index], norms[index], *mask.dark(one, norm[..., None], index, sizes), fresh)
        if not bool(touched.all()):
            o.masked_fill_(~touched.to(o.device), 0)
    if sinks is not None:
        sink.join(out, lse, sinks[:, None])
    return out.to(query.dtype), lse


def _backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, work: _Work
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value: the sum of all tiles' shares."""
    group = query.shape[1] // key.shape[1]
    exact = torch.promote_types(query.dtype, torch.float32)
    gq, gk, gv = (torch.zeros_like(x, dtype=exact, memory_format=torch.contiguous_format) for x in (query, key, value))
    # A row with no key has no weights: exp(score - inf) = 0.
    lse = lse.masked_fill(lse == float("-inf"), float("inf"))
    most = min(max(query[0].numel(), _GRADIENTS[0]), _GRADIENTS[1])

    def run(
        grad: Tensor, query: Tensor, out: Tensor, lse: Tensor, key: Tensor, value: Tensor, **mask: Any
    ) -> tuple[Tensor, ...]:
        return kernels.backward(grad, query, key, value, out, lse[..., 0], scale=work.scale, **mask)

    for job, own, pieces in work.each():
        q, o, g, into, total = (
            views.grouped(x, job.batch, own, job.row, job.row + job.rows, group)
            for x in (query, out, grad, gq, lse[..., None])
        )
        k, v, dk, dv = (x[job.batch, own.start : own.stop] for x in (key, value, gk, gv))
        for at, tile in _tiles(job, pieces, backward=True):
            stack = group if views.stacks(tile) else 1
            for part, mask in _parts(tile, at, q, _most(most, len(own) * tile.keys * q.shape[-1]), stack):
                some = [views.rows(x, part) for x in (g, q, o, total)]
                each = views.rows(into, part).unflatten(3, (group // stack, stack))
                if stack > 1:
                    some = [views.stacked(x) for x in some]
                sizes = some[0].shape[:4]
                read = [views.keys(x[:, at.first :], part, mask.unread).expand(*sizes, -1, -1) for x in (k, v)]
                for index in views.batches(sizes):
                    inputs = [*(mask.lit(x[index], index, sizes) for x in some[:3]), some[3][index]]
                    shares = views.call(run, [*inputs, *(x[index] for x in read)], mask, index, sizes)
                    each[index].add_(shares[0].unflatten(2, (stack, part.rows)))
                    for share, whole in zip(shares[1:], (dk, dv)):
                        views.add_keys(whole[:, at.first :], share, part, index)
    return gq.to(query.dtype), gk.to(key.dtype), gv.to(value.dtype)


def _most(budget: int, each: int) -> int:
    """How many problems of a size go into one call."""
    return min(kernels.MOST, max(1, budget // each))


def _merge(out: Tensor, lse: Tensor, part: Tensor, norm: Tensor, fresh: bool) -> None:
    """Merge a part's output and log-sum-exp into the running ones, in place; `fresh`: nothing is there yet."""
    if fresh:
        out.copy_(part)
        lse.copy_(norm)
        return
    weight = torch.sigmoid(norm - lse).nan_to_num_(0)  # -inf - -inf: neither has seen a key
    out.lerp_(part.to(out.dtype), weight.to(out.dtype))
    torch.logaddexp(lse, norm, out=lse) if lse.is_contiguous() else lse.copy_(torch.logaddexp(lse, norm))
