"""mamba_ssm's CUDA kernels, if installed: looked for when a CUDA tensor comes, never imported before.

Compared with the torch path in triton's interpreter (`tests/mamba/interpreted.py`); not yet run on a GPU. There the
kernels multiply in tf32 or the inputs' dtype, so they agree to their own tolerances, not to the last bits.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

#: Tokens of the kernels' chunks by default, mamba_ssm's own choice.
CHUNK = 256


@cache
def _found() -> tuple[Any, Any] | str:
    """mamba_ssm's chunked scan and its step, or the reason why there are none."""
    try:
        from mamba_ssm.ops.triton.selective_state_update import selective_state_update
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    except Exception as error:  # a broken build raises whatever it likes, and must not take the torch path with it
        return f"mamba_ssm cannot be imported ({type(error).__name__}: {error}); pip install 'hf_longctx[mamba]'"
    return mamba_chunk_scan_combined, selective_state_update


def misfit(x: Tensor, B: Tensor, chunk: int | None = None) -> str | None:
    """Why the kernels cannot take these tensors, or None; B's last axis is the state."""
    if not x.is_cuda:
        return f"the tensors are on {x.device}, and the kernels need CUDA"
    if x.dtype == torch.float64:
        return "the kernels compute in float32, and x is float64"
    if B.shape[-1] > 256:
        return f"the kernels hold states of up to 256, and B has {B.shape[-1]}"
    if chunk is not None and (chunk < 16 or chunk & (chunk - 1)):
        return f"the kernels need a chunk that is a power of 2 of at least 16, and chunk is {chunk}"
    if 0 in x.shape:
        return "the kernels need at least one token"
    found = _found()
    return found if isinstance(found, str) else None


def _kernel(index: int) -> Any:
    """The scan or the step, which `misfit` has found."""
    return _found()[index]


def scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor | None,
    documents: Tensor | None,
    chunk: int | None,
) -> tuple[Tensor, Tensor]:
    """What `chunks.scan` computes, by mamba_ssm, which holds one state for each reader."""
    readers = C.shape[2] // B.shape[2]
    if readers > 1:
        x, dt, B = (t.repeat_interleave(readers, dim=2) for t in (x, dt, B))
        A, D = A.repeat_interleave(readers), None if D is None else D.repeat_interleave(readers, dim=0)
        state = None if state is None else state.repeat_interleave(readers, dim=1)
    y, final = _kernel(0)(
        x,
        dt.float(),
        A.float(),
        B,
        C,
        CHUNK if chunk is None else chunk,
        D=None if D is None else D.float(),
        initial_states=None if state is None else state.float(),
        seq_idx=documents,
        return_final_states=True,
    )
    # Of equal states one is kept, on its own: decoding changes it in place, and a view would keep the others too.
    return y, final[:, ::readers].float().contiguous()


def step(state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> Tensor:
    """What `ssd_step` computes, by mamba_ssm. Its heads share one rate, which it knows by strides of 0.

    It reads each state once. Where several readers share one, it carries the state, and one product reads it for all.
    """
    (heads, size, n), groups, readers = state.shape[1:], B.shape[1], C.shape[1] // B.shape[1]
    # Of D and dt_bias it reads the strides even where there is none.
    none = torch.zeros(heads, 1, device=x.device)
    weights = none if D is None else D.float().view(heads, -1)
    y = _kernel(1)(
        state,
        x,
        dt.float()[..., None].expand(-1, -1, size),
        A.float()[:, None, None].expand(-1, size, n),
        B,
        C[:, ::readers],
        D=weights.expand(-1, size),
        dt_bias=none.expand(-1, size),
    )
    if readers == 1:
        return y
    y = C.to(state.dtype).unflatten(1, (groups, readers)) @ state.mT
    if D is not None:
        y = y + (x.to(state.dtype) * D.to(state.dtype).view(heads, -1)).unsqueeze(2)
    return y.flatten(1, 2).to(x.dtype)
