"""The scan in plain torch: one chunk of tokens at a time, forward and backward.

Within a chunk the scan is masked linear attention, between chunks it is a recurrence over the state (Dao and Gu 2024,
arXiv 2405.21060, section 6). Only one chunk's intermediates exist at a time, so extra memory does not grow with the
length. Backward keeps the state once in sqrt(chunks) chunks and recomputes the rest.

Shapes: b batch, q tokens of a chunk, g groups that share B and C, r heads of a group, p head size, n state size. B and
C are never expanded to heads: the r heads of a group are rows of one matrix product. Every exponent is a difference of
sums of dt * A, taken in float64 and at most 0 before it is exponentiated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Elements of one chunk's decay table that batch elements may fill together; beyond, they take turns.
_TABLE = 1 << 17


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
    """The output (b, l, h, p) in x's dtype and the final state (b, h, p, n) in the working dtype.

    Arguments are those of `ssd`, checked; `documents` (b, l) numbers each token's document.
    """
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, dt, A, B, C, D, state))
    return _Scan.apply(x, dt, A, B, C, D, state, documents, chunk, keep)


def working(dtype: torch.dtype) -> torch.dtype:
    """The dtype of states and sums: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """No autocast where x is: the scan sees to its own dtypes."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


@dataclass(frozen=True, eq=False)
class _Inputs:
    """The arguments of some batch elements. x (b, l, g, r, p), dt (b, l, g, r), A (g, r), B and C (b, l, g, n),
    D (g, r, 1 or p), documents (b, l)."""  # noqa: D205, D209

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    documents: Tensor | None

    @classmethod
    def of(
        cls, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, documents: Tensor | None
    ) -> _Inputs:
        """Split heads into groups: views, no copies of anything that is long."""
        split = (B.shape[2], x.shape[2] // B.shape[2])
        exact = torch.float64 if x.device.type != "mps" else torch.float32
        D = None if D is None else D.reshape(*split, -1).to(working(x.dtype))
        return cls(x.unflatten(2, split), dt.unflatten(2, split), A.view(split).to(exact), B, C, D, documents)

    def turns(self, chunk: int) -> Iterator[tuple[slice, _Inputs]]:
        """Batch elements in turns, as few as keep a chunk's tables small; all at once on an accelerator."""
        batch, length, groups, heads, size = self.x.shape
        q = max(1, min(chunk, length))
        each = max(1, _TABLE // (groups * heads * q * max(q, size))) if self.x.device.type == "cpu" else batch
        for start in range(0, batch, each):
            rows = slice(start, start + each)
            documents = None if self.documents is None else self.documents[rows]
            yield (
                rows,
                _Inputs(self.x[rows], self.dt[rows], self.A, self.B[rows], self.C[rows], self.D, documents),
            )


@dataclass(frozen=True, eq=False)
class _Chunk:
    """The tokens of one chunk in the working dtype, and how fast they are forgotten.

    Attributes:
        x: (b, q, g, r, p).
        dt: (b, q, g, r).
        u: (b, q, g, r, p), dt * x.
        B: (b, g, q, n).
        C: (b, g, q, n).
        log: (b, g, r, q) running sum of dt * A.
        enter: (b, q, g, r, 1), what is left of the carried state at each token.
        leave: (b, q, g, r, 1), what is left of each token at the chunk's end.
        whole: (b, g, r, 1, 1), what is left of the carried state at the chunk's end.
        documents: (b, q) or None.
    """

    x: Tensor
    dt: Tensor
    u: Tensor
    B: Tensor
    C: Tensor
    log: Tensor
    enter: Tensor
    leave: Tensor
    whole: Tensor
    documents: Tensor | None

    @classmethod
    def read(cls, of: _Inputs, start: int, stop: int) -> _Chunk:
        """Tokens [start, stop)."""
        dtype = working(of.x.dtype)
        x, dt = of.x[:, start:stop].to(dtype), of.dt[:, start:stop]
        log = (dt * of.A).permute(0, 2, 3, 1).cumsum(-1)
        enter, leave = log.exp(), (log[..., -1:] - log).exp_()
        whole = enter[..., -1:, None]
        documents = None
        if of.documents is not None:
            # The state belongs to the document of the token before; an initial state to that of the first token.
            documents = of.documents[:, start:stop]
            carried = of.documents[:, max(start - 1, 0), None]
            last = documents[:, -1:]
            enter = enter * (documents == carried)[:, None, None]
            leave = leave * (documents == last)[:, None, None]
            whole = whole * (last == carried)[:, None, None, None]
        dt = dt.to(dtype)
        return cls(
            x=x,
            dt=dt,
            u=(x * dt[..., None]).contiguous(),
            B=of.B[:, start:stop].to(dtype).transpose(1, 2),
            C=of.C[:, start:stop].to(dtype).transpose(1, 2),
            log=log,
            enter=enter.to(dtype).permute(0, 3, 1, 2)[..., None],
            leave=leave.to(dtype).permute(0, 3, 1, 2)[..., None],
            whole=whole.to(dtype),
            documents=documents,
        )

    def scores(self) -> Tensor:
        """C_i B_j, (b, g, 1, q, q), 0 where token i must not see token j."""
        return self.hide(self.C @ self.B.transpose(2, 3))[:, :, None]

    def hide(self, scores: Tensor) -> Tensor:
        """Put 0 where token i must not see token j: later tokens and other documents. In place."""
        scores = scores.tril_()
        if self.documents is None:
            return scores
        return scores.masked_fill_((self.documents[:, :, None] != self.documents[:, None])[:, None], 0)

    def decay(self) -> Tensor:
        """What is left of token j at token i, (b, g, r, q, q); 1 above the diagonal, where scores are 0."""
        return (self.log[..., None] - self.log[..., None, :]).to(self.u.dtype).clamp_(max=0).exp_()

    def read_state(self, state: Tensor) -> Tensor:
        """C_i state, (b, q, g, r, p): the carried state as each token would see it undecayed."""
        return (self.C @ state.flatten(2, 3).transpose(2, 3)).unflatten(3, state.shape[2:4]).transpose(1, 2)

    def write(self, state: Tensor) -> None:
        """Carry the state (b, g, r, p, n) over this chunk, in place."""
        state.mul_(self.whole)
        _add_outer(state, self.u * self.leave, self.B)


def _add_outer(state: Tensor, rows: Tensor, columns: Tensor) -> None:
    """Add the sum over tokens of rows (b, q, g, r, p) times columns (b, g, q, n) to a state, in place."""
    left = rows.flatten(3, 4).permute(0, 2, 3, 1).flatten(0, 1)
    state.flatten(0, 1).flatten(1, 2).baddbmm_(left, columns.flatten(0, 1))


def _heads(x: Tensor) -> Tensor:
    """(b, q, g, r, p) as (b, g, r, q, p): a view."""
    return x.permute(0, 2, 3, 1, 4)


def _tokens(x: Tensor) -> Tensor:
    """(b, g, r, q, ...) as (b, q, g, r, ...): a view."""
    return x.movedim(3, 1)


def _forward(of: _Inputs, state: Tensor, out: Tensor, chunk: int, kept: Tensor | None) -> None:
    """Fill `out` (b, l, g, r, p), carry `state` (b, g, r, p, n) to the end, and copy it into `kept` on the way."""
    length = of.x.shape[1]
    every = _every(length, chunk)
    for index, start in enumerate(range(0, length, chunk)):
        if kept is not None and index % every == 0:
            kept[index // every].copy_(state)
        one = _Chunk.read(of, start, min(start + chunk, length))
        y = out[:, start : start + chunk]
        within = one.decay().mul_(one.scores()) @ _heads(one.u)
        torch.addcmul(_tokens(within), one.read_state(state), one.enter, out=y)
        if of.D is not None:
            y.addcmul_(one.x, of.D)
        one.write(state)


def _every(length: int, chunk: int) -> int:
    """Chunks from one kept state to the next."""
    return max(1, math.isqrt(math.ceil(length / chunk)))


@dataclass(frozen=True, eq=False)
class _Gradients:
    """Where the gradients go, in the shapes of `_Inputs`; those of A and D sum over batch and tokens."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None


def _backward(of: _Inputs, into: _Gradients, dy: Tensor, d_state: Tensor, chunk: int, kept: Tensor) -> None:
    """Fill `into` from the gradients of the output and of the final state; the latter becomes the initial state's."""
    length = of.x.shape[1]
    span = _every(length, chunk) * chunk
    for index, begin in reversed(list(enumerate(range(0, length, span)))):
        state, states = kept[index].clone(), []
        starts = range(begin, min(begin + span, length), chunk)
        for start in starts:
            states.append(state.clone())
            if start != starts[-1]:
                _Chunk.read(of, start, start + chunk).write(state)
        for start in reversed(starts):
            stop = min(start + chunk, length)
            dx, ddt, dB, dC = (t[:, start:stop] for t in (into.x, into.dt, into.B, into.C))
            here = _Gradients(dx, ddt, into.A, dB, dC, into.D)
            _backward_chunk(
                _Chunk.read(of, start, stop), of, here, dy[:, start:stop].to(d_state.dtype), states.pop(), d_state
            )


def _backward_chunk(one: _Chunk, of: _Inputs, into: _Gradients, dy: Tensor, state: Tensor, d_state: Tensor) -> None:
    """One chunk, which was given `state`; `d_state`, the gradient of what it passed on, becomes that of `state`."""
    decay, scores = one.decay(), one.scores()
    weights = decay * scores
    d_weights = _heads(dy) @ _heads(one.u).transpose(3, 4)
    d_scores = one.hide((d_weights * decay).sum(2))
    # Gradients of the logarithms of each decay. A token's own weight does not decay. Sums are exact: what one token
    # gets and another gives must cancel for the steps outside of the two, and a step may be long.
    d_log, exact = d_weights.mul_(weights).tril_(-1), of.A.dtype
    d_sum = d_log.sum(4, dtype=exact) - d_log.sum(3, dtype=exact)

    # u @ B^T goes into the state, so these are the state's gradient as each token wrote it.
    written = (one.B @ d_state.flatten(2, 3).transpose(2, 3)).unflatten(3, d_state.shape[2:4]).transpose(1, 2)
    written = written * one.leave
    entered = dy * one.enter
    leaving = one.u * one.leave
    d_leave = (written * one.u).sum(4).to(exact)
    d_sum += ((entered * one.read_state(state)).sum(4) - d_leave).permute(0, 2, 3, 1)
    d_whole = (d_state * state).sum((3, 4)) * one.whole[..., 0, 0]
    d_sum[..., -1] += d_leave.sum(1) + d_whole

    d_u = _tokens(weights.transpose(3, 4) @ _heads(dy)) + written
    d_C = d_scores @ one.B + entered.flatten(3, 4).transpose(1, 2) @ state.flatten(2, 3)
    d_B = d_scores.transpose(2, 3) @ one.C + leaving.flatten(3, 4).transpose(1, 2) @ d_state.flatten(2, 3)
    d_state.mul_(one.whole)
    _add_outer(d_state, entered.contiguous(), one.C)

    # Each sum holds all steps up to its token, so a step's gradient is the sum over the tokens from it on.
    d_step = _tokens(d_sum.flip(3).cumsum(3).flip(3))
    into.dt.copy_(d_step * of.A + (d_u * one.x).sum(4))
    into.A.add_((d_step * one.dt).sum((0, 1)))
    into.B.copy_(d_B.transpose(1, 2))
    into.C.copy_(d_C.transpose(1, 2))
    d_x = d_u * one.dt[..., None]
    if of.D is not None and into.D is not None:
        d_x.addcmul_(dy, of.D)
        into.D.add_((dy * one.x).sum((0, 1)).sum_to_size(into.D.shape))
    into.x.copy_(d_x)


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
        dtype = working(x.dtype)
        final = torch.zeros(batch, heads, size, B.shape[3], dtype=dtype, device=x.device)
        if state is not None:
            final.copy_(state)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        kept = None
        if keep:
            spans = math.ceil(length / (_every(length, chunk) * chunk))
            kept = final.new_empty(spans, *final.shape)
        with full_precision(x):
            split = (B.shape[2], heads // B.shape[2])
            for rows, of in _Inputs.of(x, dt, A, B, C, D, documents).turns(chunk):
                _forward(
                    of,
                    final[rows].unflatten(1, split),
                    out[rows].unflatten(2, split),
                    chunk,
                    None if kept is None else kept[:, rows].unflatten(2, split),
                )
        if keep:
            ctx.save_for_backward(x, dt, A, B, C, D, documents, kept)
            ctx.chunk, ctx.state_dtype = chunk, None if state is None else state.dtype
        return out, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, d_final: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C, D, documents, kept = ctx.saved_tensors
        d_state = d_final.clone(memory_format=torch.contiguous_format)
        dx, ddt, dB, dC = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, dt, B, C))
        with full_precision(x):
            every = _Inputs.of(x, dt, A, B, C, D, documents)
            split = tuple(every.A.shape)
            dA = torch.zeros_like(every.A)
            dD = None if every.D is None else torch.zeros_like(every.D)
            for rows, of in every.turns(ctx.chunk):
                into = _Gradients(
                    dx[rows].unflatten(2, split), ddt[rows].unflatten(2, split), dA, dB[rows], dC[rows], dD
                )
                gradient = dy[rows].unflatten(2, split)
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
