"""One chunk of the scan: masked linear attention within, the carried state at its edges, and the gradients of both.

Dao and Gu 2024, arXiv 2405.21060, section 6. Shapes: b batch (forward, chunks of one batch element that are read
together stand there too), q tokens of a chunk, g groups that share B, r heads of a
group, k readers of a group (each has a C of its own), p head size, n state size. Of r and k one is 1, save where both
are. B and C are never expanded: the r heads, or the k readers, of a group are rows of one matrix product. Every
exponent is a difference of sums of dt * A, taken in float64 and at most 0 before it is exponentiated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def working(dtype: torch.dtype) -> torch.dtype:
    """The dtype of states and sums: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True, eq=False)
class Inputs:
    """The arguments of some batch elements, heads split into groups.

    Attributes:
        x: (b, l, g, r, p).
        dt: (b, l, g, r).
        A: (g, r).
        B: (b, l, g, n).
        C: (b, l, g, k, n).
        D: (g, r, 1, 1 or p) or None.
        documents: (b, l) or None.
    """

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
    ) -> Inputs:
        """Split heads and readers into groups: views, no copies of anything that is long."""
        groups = B.shape[2]
        split, readers = (groups, x.shape[2] // groups), (groups, C.shape[2] // groups)
        exact = torch.float64 if x.device.type != "mps" else torch.float32
        D = None if D is None else D.reshape(*split, 1, -1).to(working(x.dtype))
        return cls(
            x.unflatten(2, split), dt.unflatten(2, split), A.view(split).to(exact), B, C.unflatten(2, readers), D,
            documents,
        )  # fmt: skip

    def rows(self, rows: slice) -> Inputs:
        """Some of the batch elements."""
        documents = None if self.documents is None else self.documents[rows]
        return Inputs(self.x[rows], self.dt[rows], self.A, self.B[rows], self.C[rows], self.D, documents)


@dataclass(frozen=True, eq=False)
class Gradients:
    """Where the gradients go, in the shapes of `Inputs`; those of A and D sum over batch and tokens."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None

    def tokens(self, start: int, stop: int) -> Gradients:
        """Those of tokens [start, stop)."""
        x, dt, B, C = (t[:, start:stop] for t in (self.x, self.dt, self.B, self.C))
        return Gradients(x, dt, self.A, B, C, self.D)


@dataclass(frozen=True, eq=False)
class Chunk:
    """The tokens of one chunk in the working dtype, and how fast they are forgotten.

    Attributes:
        x: (b, q, g, r, p).
        dt: (b, q, g, r).
        u: (b, q, g, r, p), dt * x.
        B: (b, g, q, n).
        C: (b, g, k q, n), reader after reader.
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
    def read(cls, of: Inputs, start: int, stop: int, together: int = 1) -> Chunk:
        """Tokens [start, stop), cut into so many chunks of one size."""

        def cut(tokens: Tensor) -> Tensor:
            return in_chunks(tokens[:, start:stop], together)

        dtype = working(of.x.dtype)
        x, dt = cut(of.x).to(dtype), cut(of.dt)
        log = (dt * of.A).permute(0, 2, 3, 1).cumsum(-1)
        enter, leave = log.exp(), (log[..., -1:] - log).exp_()
        whole = enter[..., -1:, None]
        documents = None
        if of.documents is not None:
            # The state belongs to the document of the token before; an initial state to that of the first token.
            documents = cut(of.documents)
            before = range(start - 1, stop - 1, (stop - start) // together)
            carried = of.documents[:, [max(token, 0) for token in before]].flatten()[:, None]
            last = documents[:, -1:]
            enter = enter * (documents == carried)[:, None, None]
            leave = leave * (documents == last)[:, None, None]
            whole = whole * (last == carried)[:, None, None, None]
        dt = dt.to(dtype)
        return cls(
            x=x,
            dt=dt,
            u=(x * dt[..., None]).contiguous(),
            B=cut(of.B).to(dtype).transpose(1, 2),
            C=cut(of.C).to(dtype).permute(0, 2, 3, 1, 4).flatten(2, 3),
            log=log,
            enter=enter.to(dtype).permute(0, 3, 1, 2)[..., None],
            leave=leave.to(dtype).permute(0, 3, 1, 2)[..., None],
            whole=whole.to(dtype),
            documents=documents,
        )

    def scores(self) -> Tensor:
        """C_i B_j, (b, g, k, q, q), 0 where token i must not see token j."""
        length = self.B.shape[2]
        return self.hide((self.C @ self.B.transpose(2, 3)).unflatten(2, (-1, length)))

    def hide(self, scores: Tensor) -> Tensor:
        """Put 0 where token i must not see token j: later tokens and other documents. In place."""
        scores = scores.tril_()
        if self.documents is None:
            return scores
        return scores.masked_fill_((self.documents[:, :, None] != self.documents[:, None])[:, None, None], 0)

    def decay(self) -> Tensor:
        """What is left of token j at token i, (b, g, r, q, q); 1 above the diagonal, where scores are 0."""
        return (self.log[..., None] - self.log[..., None, :]).to(self.u.dtype).clamp_(max=0).exp_()

    def weights(self, decay: Tensor, scores: Tensor) -> Tensor:
        """Their product for each head and reader, (b, g, r, k, q, q); `decay` is used up where there is one reader."""
        if scores.shape[2] == 1:
            return decay.mul_(scores)[:, :, :, None]
        return decay[:, :, :, None] * scores[:, :, None]

    def read_state(self, state: Tensor) -> Tensor:
        """C_i state, (b, q, g, r, k, p): the carried state (b, g, r, p, n) as each token would see it undecayed."""
        seen = self.C @ state.flatten(2, 3).transpose(2, 3)
        return seen.unflatten(3, state.shape[2:4]).unflatten(2, (-1, self.B.shape[2])).permute(0, 3, 1, 4, 2, 5)

    def write(self, state: Tensor) -> None:
        """Carry the state (b, g, r, p, n) over this chunk, in place."""
        state.mul_(self.whole)
        _add_outer(state, (self.u * self.leave)[..., None, :], self.B)

    def write_each(self, state: Tensor) -> Tensor:
        """Carry the state (1, g, r, p, n) over all chunks, in place; gives what each was given, (b, g, r, p, n)."""
        added = torch.bmm(*_outer((self.u * self.leave)[..., None, :], self.B)).view(-1, *state.shape[1:])
        given, last = torch.empty_like(added), state[0]
        for one, before, whole in zip(added, given, self.whole):
            before.copy_(last)
            torch.addcmul(one, before, whole, out=last)
        return given


def forward(of: Inputs, one: Chunk, state: Tensor, y: Tensor) -> None:
    """Fill `y` (b, q, g, r, k, p) with the output; `state` (b, g, r, p, n) is carried to the end.

    Where `one` holds several chunks of one batch element, the state is (1, g, r, p, n).
    """
    several = len(y) > len(state)
    given = one.write_each(state) if several else state
    within = _pairs(one.weights(one.decay(), one.scores())) @ _heads(one.u)
    within = within.unflatten(3, (-1, one.B.shape[2])).permute(0, 4, 1, 2, 3, 5)
    torch.addcmul(within, one.read_state(given), one.enter[..., None], out=y)
    if of.D is not None:
        y.addcmul_(one.x[..., None, :], of.D)
    if not several:
        one.write(state)


def in_chunks(tokens: Tensor, together: int) -> Tensor:
    """(b, l, ...) as (b * together, l / together, ...): a view where b or together is 1."""
    return tokens if together == 1 else tokens.unflatten(1, (together, -1)).flatten(0, 1)


def backward(one: Chunk, of: Inputs, into: Gradients, dy: Tensor, state: Tensor, d_state: Tensor) -> None:
    """Gradients of one chunk.

    Args:
        one: the chunk.
        of: all arguments.
        into: where the gradients of this chunk's tokens go.
        dy: (b, q, g, r, k, p) gradient of its output.
        state: (b, g, r, p, n), what it was given.
        d_state: the gradient of what it passed on; becomes that of `state`.
    """
    decay, scores = one.decay(), one.scores()
    length, shape = one.B.shape[2], d_state.shape[2:4]
    flat = dy.permute(0, 2, 3, 4, 1, 5).flatten(3, 4)  # (b, g, r, k q, p)
    d_weights = (flat @ _heads(one.u).transpose(3, 4)).unflatten(3, (-1, length))
    d_scores = one.hide((d_weights * decay[:, :, :, None]).sum(2)).flatten(2, 3)
    weights = one.weights(decay, scores)
    # Gradients of the logarithms of each decay. A token's own weight does not decay. Sums are exact: what one token
    # gets and another gives must cancel for the steps outside of the two, and a step may be long.
    exact = of.A.dtype
    d_log = d_weights.mul_(weights)
    d_log = (d_log[:, :, :, 0] if d_log.shape[3] == 1 else d_log.sum(3)).tril_(-1)
    d_sum = d_log.sum(4, dtype=exact) - d_log.sum(3, dtype=exact)

    # u @ B^T goes into the state, so these are the state's gradient as each token wrote it.
    written = (one.B @ d_state.flatten(2, 3).transpose(2, 3)).unflatten(3, shape).transpose(1, 2)
    written = written * one.leave
    entered = dy * one.enter[..., None]
    leaving = one.u * one.leave
    d_leave = (written * one.u).sum(4).to(exact)
    d_sum += ((entered * one.read_state(state)).sum((4, 5)) - d_leave).permute(0, 2, 3, 1)
    d_whole = (d_state * state).sum((3, 4)) * one.whole[..., 0, 0]
    d_sum[..., -1] += d_leave.sum(1) + d_whole

    d_u = (_pairs(weights).transpose(3, 4) @ flat).movedim(3, 1) + written
    entering = entered.permute(0, 2, 4, 1, 3, 5).flatten(4, 5).flatten(2, 3)  # (b, g, k q, r p)
    d_C = d_scores @ one.B + entering @ state.flatten(2, 3)
    d_B = d_scores.transpose(2, 3) @ one.C + leaving.flatten(3, 4).transpose(1, 2) @ d_state.flatten(2, 3)
    d_state.mul_(one.whole)
    _add_outer(d_state, entered, one.C)

    # Each sum holds all steps up to its token, so a step's gradient is the sum over the tokens from it on.
    d_step = d_sum.flip(3).cumsum(3).flip(3).movedim(3, 1)
    into.dt.copy_(d_step * of.A + (d_u * one.x).sum(4))
    into.A.add_((d_step * one.dt).sum((0, 1)))
    into.B.copy_(d_B.transpose(1, 2))
    into.C.copy_(d_C.unflatten(2, (-1, length)).permute(0, 3, 1, 2, 4))
    d_x = d_u * one.dt[..., None]
    if of.D is not None and into.D is not None:
        d_x.add_((dy * of.D).sum(4))
        into.D.add_((dy * one.x[..., None, :]).sum((0, 1)).sum_to_size(into.D.shape))
    into.x.copy_(d_x)


def _add_outer(state: Tensor, rows: Tensor, columns: Tensor) -> None:
    """Add the sum over tokens and readers of rows (b, q, g, r, k, p) times columns (b, g, k q, n), in place."""
    state.flatten(0, 1).flatten(1, 2).baddbmm_(*_outer(rows, columns))


def _outer(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """What to multiply for that sum: (b g, r p, k q) and (b g, k q, n)."""
    left = rows.permute(0, 2, 3, 5, 4, 1).flatten(4, 5).flatten(2, 3).flatten(0, 1)
    return left, columns.flatten(0, 1)


def _pairs(weights: Tensor) -> Tensor:
    """(b, g, r, k, q, q) as (b, g, r, k q, q): a view."""
    return weights.flatten(3, 4)


def _heads(x: Tensor) -> Tensor:
    """(b, q, g, r, p) as (b, g, r, q, p): a view."""
    return x.permute(0, 2, 3, 1, 4)
