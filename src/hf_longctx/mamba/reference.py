"""The scans as they are defined, one token after another in float64: what everything else is compared with."""

from __future__ import annotations

import torch
from torch import Tensor


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    initial_state: Tensor | None = None,
    segments: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """State-space duality by its recurrence (Dao and Gu 2024, arXiv 2405.21060, equation 1 with a scalar A).

    For each head: state <- exp(dt A) state + dt x B^T, then y = state C + D x. Differentiable by autograd.

    Args:
        x: (b, l, h, p).
        dt: (b, l, h).
        A: (h,).
        B: (b, l, g, n).
        C: (b, l, c, n), c a multiple of g; where it is more, h = g, and each state is read c / g times.
        D: (h,) or (h, p).
        initial_state: (b, h, p, n).
        segments: (b, l) integer ids; the state is emptied where they change.

    Returns:
        y (b, l, h or c, p) and the final state (b, h, p, n), both float64.
    """
    x, dt, A, B, C = (t.double() for t in (x, dt, A, B, C))
    (batch, length, heads, size), n = x.shape, B.shape[3]
    each, readers = heads // B.shape[2], C.shape[2] // B.shape[2]
    B, C = (t.repeat_interleave(each, dim=2) for t in (B, C))
    state = x.new_zeros(batch, heads, size, n) if initial_state is None else initial_state.double()
    ys = []
    for t in range(length):
        if segments is not None and t:
            state = state * (segments[:, t] == segments[:, t - 1])[:, None, None, None]
        decay = (dt[:, t] * A).exp()[..., None, None]
        state = decay * state + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None]
        ys.append((state.repeat_interleave(readers, dim=1) @ C[:, t, ..., None])[..., 0])
    y = torch.stack(ys, dim=1) if ys else x.new_zeros(batch, 0, heads * readers, size)
    if D is not None:
        y = y + (D.double().reshape(heads, -1) * x).repeat_interleave(readers, dim=2)
    return y, state
