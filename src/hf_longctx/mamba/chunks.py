"""The scan in plain torch: one chunk of tokens after another, or a few at once, forward and backward.

Within a chunk the scan is masked linear attention (`chunk.py`), between chunks it is a recurrence over the state. Only
a few chunks' intermediates exist at a time, so extra memory does not grow with the length. Backward keeps the state
once in sqrt(chunks) chunks and recomputes the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_longctx.compiling import eager
from hf_longctx.mamba import chunk as one_chunk
from hf_longctx.mamba.chunk import Chunk, Gradients, Inputs, working

#: Elements of one chunk's decay tables that batch elements may fill together; beyond, they take turns.
_TABLE = 1 << 17
#: Elements of such tables that chunks of one batch element may fill together, on one thread and on more: fewer and
#: larger calls, as long as all of it stays near the core; two threads need more to share. A GPU has no such core.
_TOGETHER, _TOGETHER_FAR = (1 << 17, 1 << 18), 1 << 26


def scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor | None,
    documents: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """The output (b, l, heads of y, p) in x's dtype and the final state (b, h, p, n) in the working dtype.

    Arguments are those of `ssd`, checked; `documents` (b, l) numbers each token's document.
    """
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, dt, A, B, C, D, state))
    return _Scan.apply(x, dt, A, B, C, D, state, documents, chunk, keep)


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """No autocast where x is: the scan sees to its own dtypes."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _turns(of: Inputs, chunk: int) -> Iterator[tuple[slice, Inputs]]:
    """Batch elements in turns, as few as keep a chunk's tables small; all at once on an accelerator."""
    batch = len(of.x)
    each = max(1, _TABLE // _tables(of, chunk)) if of.x.device.type == "cpu" else batch
    for start in range(0, batch, each):
        rows = slice(start, start + each)
        yield rows, of.rows(rows)


def _tables(of: Inputs, chunk: int) -> int:
    """Elements of one chunk's decay tables, for one batch element."""
    _, length, groups, heads, size = of.x.shape
    q = max(1, min(chunk, length))
    return groups * heads * of.C.shape[3] * q * max(q, size)


def _every(length: int, chunk: int) -> int:
    """Chunks from one kept state to the next."""
    return max(1, math.isqrt(math.ceil(length / chunk)))


def _forward(of: Inputs, state: Tensor, out: Tensor, chunk: int, kept: Tensor | None) -> None:
    """Fill `out` (b, l, g, r, k, p), carry `state` (b, g, r, p, n) to the end, copy it into `kept` on the way."""
    length = of.x.shape[1]
    span = max(1, length) if kept is None else _every(length, chunk) * chunk
    for index, begin in enumerate(range(0, length, span)):
        if kept is not None:
            kept[index].copy_(state)
        for start, stop, together in _blocks(begin, min(begin + span, length), chunk, _together(of, chunk)):
            y = one_chunk.in_chunks(out[:, start:stop], together)
            one_chunk.forward(of, Chunk.read(of, start, stop, together), state, y)


def _together(of: Inputs, chunk: int) -> int:
    """How many chunks to read at once: several only of a single batch element, whose output is then one view."""
    most = _TOGETHER[torch.get_num_threads() > 1] if of.x.device.type == "cpu" else _TOGETHER_FAR
    return max(1, most // _tables(of, chunk)) if len(of.x) == 1 else 1


def _blocks(begin: int, end: int, chunk: int, together: int) -> Iterator[tuple[int, int, int]]:
    """Where to cut [begin, end): first and last token and number of chunks, all of one size, of each block.

    >>> list(_blocks(0, 100, 16, 4))
    [(0, 64, 4), (64, 96, 2), (96, 100, 1)]
    """
    whole = begin + (end - begin) // chunk * chunk
    for start in range(begin, whole, chunk * together):
        stop = min(start + chunk * together, whole)
        yield start, stop, (stop - start) // chunk
    if whole < end:
        yield whole, end, 1


def _backward(of: Inputs, into: Gradients, dy: Tensor, d_state: Tensor, chunk: int, kept: Tensor) -> None:
    """Fill `into` from the gradients of the output and of the final state; the latter becomes the initial state's."""
    length = of.x.shape[1]
    span = _every(length, chunk) * chunk
    for index, begin in reversed(list(enumerate(range(0, length, span)))):
        state, states = kept[index].clone(), []
        starts = range(begin, min(begin + span, length), chunk)
        for start in starts:
            states.append(state.clone())
            if start != starts[-1]:
                Chunk.read(of, start, start + chunk).write(state)
        for start in reversed(starts):
            stop = min(start + chunk, length)
            gradient = dy[:, start:stop].to(d_state.dtype)
            one = Chunk.read(of, start, stop)
            one_chunk.backward(one, of, into.tokens(start, stop), gradient, states.pop(), d_state)


class _Scan(torch.autograd.Function):
    """The scan with a backward that recomputes each chunk, so that training keeps little more than the arguments."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        state: Tensor | None,
        documents: Tensor | None,
        chunk: int,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        batch, length, heads, size = x.shape
        groups, dtype = B.shape[2], working(x.dtype)
        split, outputs = (groups, heads // groups), _outputs(x, B, C)
        final = torch.zeros(batch, heads, size, B.shape[3], dtype=dtype, device=x.device)
        if state is not None:
            final.copy_(state)
        out = x.new_empty(batch, length, math.prod(outputs), size)
        kept = None
        if keep:
            spans = math.ceil(length / (_every(length, chunk) * chunk))
            kept = final.new_empty(spans, *final.shape)
        with full_precision(x):
            for rows, of in _turns(Inputs.of(x, dt, A, B, C, D, documents), chunk):
                _forward(
                    of,
                    final[rows].unflatten(1, split),
                    out[rows].unflatten(2, outputs),
                    chunk,
                    None if kept is None else kept[:, rows].unflatten(2, split),
                )
        if keep:
            ctx.save_for_backward(x, dt, A, B, C, D, documents, kept)
            ctx.chunk, ctx.state_dtype = chunk, None if state is None else state.dtype
        return out, final

    @staticmethod
    @eager
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, d_final: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C, D, documents, kept = ctx.saved_tensors
        d_state = d_final.clone(memory_format=torch.contiguous_format)
        dx, ddt, dB, dC = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, dt, B, C))
        outputs = _outputs(x, B, C)
        with full_precision(x):
            every = Inputs.of(x, dt, A, B, C, D, documents)
            split, readers = every.x.shape[2:4], every.C.shape[2:4]
            dA = torch.zeros_like(every.A)
            dD = None if every.D is None else torch.zeros_like(every.D)
            for rows, of in _turns(every, ctx.chunk):
                into = Gradients(
                    dx[rows].unflatten(2, split),
                    ddt[rows].unflatten(2, split),
                    dA,
                    dB[rows],
                    dC[rows].unflatten(2, readers),
                    dD,
                )
                gradient = dy[rows].unflatten(2, outputs)
                states = kept[:, rows].unflatten(2, split)
                _backward(of, into, gradient, d_state[rows].unflatten(1, split), ctx.chunk, states)
        return (
            dx,
            ddt,
            dA.reshape(A.shape).to(A.dtype),
            dB,
            dC,
            None if D is None or dD is None else dD.reshape(D.shape).to(D.dtype),
            None if ctx.state_dtype is None else d_state.to(ctx.state_dtype),
            None,
            None,
            None,
        )


def _outputs(x: Tensor, B: Tensor, C: Tensor) -> tuple[int, int, int]:
    """Groups, heads of a group and readers of a group: the heads of y are all of these, in this order."""
    groups = B.shape[2]
    return groups, x.shape[2] // groups, C.shape[2] // groups
