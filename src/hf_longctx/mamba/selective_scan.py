"""The selective scan of Mamba-1, token by token: a reference, in memory that holds one state."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_longctx.mamba import checks
from hf_longctx.mamba.chunk import working
from hf_longctx.mamba.chunks import full_precision


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    segments: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The scan of Mamba-1 (Gu and Dao 2023, arXiv 2312.00752, algorithm 2), where each channel forgets at n rates.

    For each channel: state <- exp(dt A) state + dt x B, then y = state . C + D x. With A equal along n, each channel
    is a head of size 1 of `ssd`. A loop over tokens, for reference and for tests: differentiable, and slow.

    Args:
        x: (b, l, d), any floating dtype.
        dt: (b, l, d) step sizes after softplus, at least 0; 0 leaves the state as it is, which is how to pad.
        A: (d, n), at most 0.
        B: (b, l, g, n); g divides d.
        C: (b, l, g, n).
        D: (d,) skip weights.
        initial_state: (b, d, n) state before the first token, 0 if None.
        return_final_state: also return the state after the last token.
        segments: (b, l) integer ids of packed documents: each maximal run of equal ids is a document.

    Returns:
        y (b, l, d) in x's dtype, or y and the state (b, d, n), float32 (float64 for float64).

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: shapes do not fit, dt is negative, or A is positive.

    >>> x, dt, B = torch.randn(1, 5, 4), torch.rand(1, 5, 4), torch.randn(1, 5, 1, 3)
    >>> selective_scan(x, dt, -torch.rand(4, 3), B, B).shape
    torch.Size([1, 5, 4])
    """
    checks.selective_scan(x, dt, A, B, C, D, initial_state, segments)
    dtype = working(x.dtype)
    (batch, length, channels), (groups, n) = x.shape, B.shape[2:]
    split = (groups, channels // groups)
    with full_precision(x):
        u, steps = (dt.to(dtype) * x.to(dtype)).unflatten(2, split), dt.to(dtype).unflatten(2, split)
        rates = A.to(dtype).unflatten(0, split)
        if initial_state is None:
            state = u.new_zeros(batch, *split, n)
        else:
            state = initial_state.to(dtype).unflatten(1, split)
        ys = []
        for t in range(length):
            if segments is not None and t:
                state = state * (segments[:, t] == segments[:, t - 1])[:, None, None, None]
            b, c = (m[:, t, :, None].to(dtype) for m in (B, C))
            state = (steps[:, t, ..., None] * rates).exp() * state + u[:, t, ..., None] * b
            ys.append((state * c).sum(-1).flatten(1))
        y = torch.stack(ys, dim=1) if ys else u.flatten(2)
        if D is not None:
            y = y + D.to(dtype) * x.to(dtype)
    y = y.to(x.dtype)
    return (y, state.flatten(1, 2)) if return_final_state else y
