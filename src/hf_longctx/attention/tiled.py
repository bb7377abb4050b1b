"""The engine: runs a pattern's pieces as dense problems on views, and knows no pattern by name.

Each run of contiguous real tokens of one document is cut into tiles (`patterns.geometry`). A tile is one call of the
dense flash kernel on strided views of the keys and values, which are never copied or repeated: the query heads of a
group become rows of one problem. Tiles are disjoint, so results for the same row merge exactly by log-sum-exp, as
flash attention does with its own blocks (Dao et al. 2022, arXiv 2205.14135, section 3.1). Backward calls each tile's
flash backward with the merged output and log-sum-exp; the sum over tiles is the exact gradient. Nothing of size n x n
exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_longctx.attention import kernels, views
from hf_longctx.attention.layout import Layout
from hf_longctx.patterns import Pattern
from hf_longctx.patterns.geometry import Strip, Tile, lower

#: Rows times heads of a band run in one kernel call: copies of queries and outputs stay this small.
_SLAB = 1 << 16
#: Key gradients of a band held at once, in elements: as many as the queries have, within these bounds. They overlap
#: from problem to problem, so that together they are many times the size of the keys.
_GRADIENTS = 1 << 20, 1 << 22


@dataclass(frozen=True)
class _Span:
    """Stored tokens [start, stop) of one document at consecutive logical positions from `position`."""

    start: int
    stop: int
    position: int
    document: int

    def logical(self, start: int | None = None) -> tuple[int, int]:
        """First and one past the last logical position, from stored token `start` on."""
        first = self.start if start is None else start
        return self.position + first - self.start, self.position + self.stop - self.start


@dataclass(frozen=True)
class _Job:
    """The rows [row, row + rows) of one batch element against the spans of keys that they may see.

    Each of `spans` is the first stored key and the logical ranges of rows and keys.
    """

    batch: int
    row: int
    rows: int
    spans: tuple[tuple[int, tuple[int, int], tuple[int, int]], ...]

    def tiles(self, strips: tuple[Strip, ...], *, backward: bool = False) -> Iterator[tuple[int, Tile]]:
        """The tiles, each with the first stored key of its span."""
        for key, rows, keys in self.spans:
            for tile in lower(strips, rows, keys, backward=backward):
                yield key, tile


def cannot(pattern: Pattern, *, device: torch.device, dtype: torch.dtype, needs_grad: bool = False) -> str | None:
    """Why this engine cannot compute a pattern here, or None if it can.

    >>> from hf_longctx.patterns import Random
    >>> cannot(Random(1, 64), device=torch.device("cpu"), dtype=torch.float32)
    'random:1,64,seed=0 has no fast path yet'
    """
    if pattern.pieces() is None:
        return f"{pattern} has no fast path yet"
    return kernels.missing(device, dtype)


def attend(query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, layout: Layout, *, scale: float) -> Tensor:
    """Attention by tiles. Arguments and result as in `reference.attend`; ask `cannot` first.

    Extra memory is about that of the queries and the output, forward; never n x n.
    """
    strips = pattern.pieces()
    if strips is None:
        raise ValueError(f"{pattern} has no pieces: use backend='auto'")
    batch, first = query.shape[0], layout.keys - layout.queries
    if layout.plain:
        span = _Span(0, layout.keys, 0, 0)
        jobs = tuple(job for b in range(batch) for job in _jobs(b, [span], first))
        return _run(query, key, value, jobs, strips, scale)

    positions = torch.arange(layout.keys)[None] if layout.positions is None else layout.positions.cpu()
    if not any(_holed(p) for p in positions):
        rows = [_spans(p, _row(layout.documents, b)) for b, p in enumerate(positions)]
        jobs = tuple(job for b in range(batch) for job in _jobs(b, rows[b % len(rows)], first))
        return _run(query, key, value, jobs, strips, scale)

    # Padding between real tokens: run each row on its real tokens alone.
    outs = []
    for b in range(batch):
        p, d = positions[b % len(positions)], _row(layout.documents, b)
        real = (p >= 0).nonzero()[:, 0]
        here = real[real >= first] - first
        spans = _spans(p[real], None if d is None else d[real])
        part = _run(
            query[b : b + 1, :, here],
            key[b : b + 1, :, real],
            value[b : b + 1, :, real],
            tuple(_jobs(0, spans, len(real) - len(here))),
            strips,
            scale,
        )
        blank = query.new_zeros(1, query.shape[1], layout.queries, value.shape[-1])
        outs.append(blank.index_copy(2, here, part))
    return torch.cat(outs)


# ---------------------------------------------------------------------- from tokens to jobs


def _row(table: Tensor | None, batch: int) -> Tensor | None:
    return None if table is None else table[batch % len(table)].cpu()


def _holed(positions: Tensor) -> bool:
    """Whether there is padding between real tokens of positions (Lk,)."""
    real = (positions >= 0).nonzero()[:, 0]
    return len(real) > 0 and int(real[-1] - real[0]) + 1 != len(real)


def _spans(positions: Tensor, documents: Tensor | None) -> list[_Span]:
    """The maximal runs of real tokens at consecutive positions of one document; positions and documents (Lk,)."""
    real = positions >= 0
    new = real.clone()
    new[1:] &= ~(real[:-1] & (positions[1:] == positions[:-1] + 1))
    if documents is not None:
        new[1:] |= real[1:] & (documents[1:] != documents[:-1])
    starts = new.nonzero()[:, 0].tolist()
    end = int(real.nonzero()[-1]) + 1 if starts else 0
    number = documents if documents is not None else torch.zeros_like(positions)
    return [
        _Span(start, stop, int(positions[start]), int(number[start]))
        for start, stop in zip(starts, [*starts[1:], end])
    ]


def _jobs(batch: int, spans: list[_Span], first: int) -> Iterator[_Job]:
    """One job for each span that holds queries; queries are the stored tokens from `first` on."""
    for own in spans:
        start = max(own.start, first)
        if start < own.stop:
            rows = own.logical(start)
            seen = tuple((s.start, rows, s.logical()) for s in spans if s.document == own.document)
            yield _Job(batch, start - first, own.stop - start, seen)


# ---------------------------------------------------------------------- running jobs


def _run(
    query: Tensor, key: Tensor, value: Tensor, jobs: tuple[_Job, ...], strips: tuple[Strip, ...], scale: float
) -> Tensor:
    if torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value)):
        return _Tiled.apply(query, key, value, jobs, strips, scale)
    return _forward(query, key, value, jobs, strips, scale)[0]


class _Tiled(torch.autograd.Function):
    """`_forward` with `_backward` as its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        jobs: tuple[_Job, ...],
        strips: tuple[Strip, ...],
        scale: float,
    ) -> Tensor:
        out, lse = _forward(query, key, value, jobs, strips, scale)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.work = jobs, strips, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        return (*_backward(grad, query, key, value, out, lse, *ctx.work), None, None, None)


def _forward(
    query: Tensor, key: Tensor, value: Tensor, jobs: tuple[_Job, ...], strips: tuple[Strip, ...], scale: float
) -> tuple[Tensor, Tensor]:
    """Output (B, Hq, Lq, D), laid out as (B, Lq, Hq, D), and log-sum-exp (B, Hq, Lq), -inf for rows with no key."""
    batch, heads, rows, size = query.shape
    kv_heads = key.shape[1]
    merging = any(sum(t.rows * t.count for _, t in job.tiles(strips)) > job.rows for job in jobs)
    exact = torch.promote_types(query.dtype, torch.float32)
    # Rounding once for each merge would add up.
    out = query.new_zeros((batch, rows, heads, size), dtype=exact if merging else query.dtype).transpose(1, 2)
    lse = query.new_full((batch, heads, rows), float("-inf"), dtype=exact)
    for job in jobs:
        q, o = (views.grouped(x, job.batch, job.row, job.row + job.rows, kv_heads) for x in (query, out))
        total = views.grouped(lse[..., None], job.batch, job.row, job.row + job.rows, kv_heads)
        touched: list[tuple[int, int]] = []
        for first, tile in job.tiles(strips):
            fresh = all(tile.stop <= a or b <= tile.row for a, b in touched)
            touched.append((tile.row, tile.stop))
            k, v = key[job.batch, :, first + tile.key :], value[job.batch, :, first + tile.key :]
            mask = views.mask(tile, q)
            for t, part in views.slabs(tile, max(1, _SLAB // (heads * tile.rows))):
                at = t * tile.step
                one, norm = kernels.forward(
                    views.problems(q, part),
                    views.keys(k[:, at:], part, q),
                    views.keys(v[:, at:], part, q),
                    scale=scale,
                    **mask,
                )
                norm = norm[..., None]
                if "mask" in mask:
                    norm = norm.masked_fill((mask["mask"] == float("-inf")).all(-1, keepdim=True), float("-inf"))
                _merge(
                    views.view(o, part),
                    views.view(total, part),
                    views.unstack(one, part, q),
                    views.unstack(norm, part, q),
                    fresh,
                )
    return out.to(query.dtype), lse


def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    jobs: tuple[_Job, ...],
    strips: tuple[Strip, ...],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value: the sum of all tiles' shares."""
    kv_heads = key.shape[1]
    exact = torch.promote_types(query.dtype, torch.float32)
    gq, gk, gv = (torch.zeros_like(x, dtype=exact, memory_format=torch.contiguous_format) for x in (query, key, value))
    # A row with no key has no weights: exp(score - inf) = 0.
    lse = lse.masked_fill(lse == float("-inf"), float("inf"))
    most = min(max(query[0].numel(), _GRADIENTS[0]), _GRADIENTS[1])
    for job in jobs:
        q, o, g, into = (
            views.grouped(x, job.batch, job.row, job.row + job.rows, kv_heads) for x in (query, out, grad, gq)
        )
        total = views.grouped(lse[..., None], job.batch, job.row, job.row + job.rows, kv_heads)
        for first, tile in job.tiles(strips, backward=True):
            mask = views.mask(tile, q)
            for t, part in views.slabs(tile, max(1, most // (kv_heads * tile.keys * q.shape[-1]))):
                at = first + tile.key + t * tile.step
                k, v = key[job.batch, :, at:], value[job.batch, :, at:]
                dq, dk, dv = kernels.backward(
                    views.problems(g, part),
                    views.problems(q, part),
                    views.keys(k, part, q),
                    views.keys(v, part, q),
                    views.problems(o, part),
                    views.problems(total, part)[..., 0],
                    scale=scale,
                    **mask,
                )
                views.view(into, part).add_(views.unstack(dq, part, q))
                for share, whole in ((dk, gk), (dv, gv)):
                    views.add_keys(whole[job.batch, :, at:], share, part)
    return gq.to(query.dtype), gk.to(key.dtype), gv.to(value.dtype)


def _merge(out: Tensor, lse: Tensor, part: Tensor, norm: Tensor, fresh: bool) -> None:
    """Merge a part's output and log-sum-exp into the running ones, in place; `fresh`: nothing is there yet."""
    if fresh:
        out.copy_(part)
        lse.copy_(norm)
        return
    weight = torch.sigmoid(norm - lse).nan_to_num_(0)  # -inf - -inf: neither has seen a key
    out.lerp_(part.to(out.dtype), weight.to(out.dtype))
    torch.logaddexp(lse, norm, out=lse) if lse.is_contiguous() else lse.copy_(torch.logaddexp(lse, norm))
