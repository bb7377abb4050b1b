"""mamba_ssm's CUDA kernels, if installed: looked for when a CUDA tensor comes, never imported before.

Not yet run on a GPU. The kernels multiply in tf32 or the inputs' dtype, so they agree with the torch path to their own
tolerances, not to the last bits.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

#: Tokens of the kernels' chunks by default, mamba_ssm's own choice.
CHUNK = 256


@cache
def _combined() -> Any:
    """mamba_ssm's chunked scan, or the reason why there is none."""
    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    except Exception as error:  # a broken build raises whatever it likes, and must not take the torch path with it
        return f"mamba_ssm cannot be imported ({type(error).__name__}: {error}); pip install 'hf_longctx[mamba]'"
    return mamba_chunk_scan_combined


def misfit(x: Tensor, B: Tensor, chunk: int | None) -> str | None:
    """Why the kernels cannot scan these tensors, or None."""
    if not x.is_cuda:
        return f"the tensors are on {x.device}, and the kernels need CUDA"
    if x.dtype == torch.float64:
        return "the kernels compute in float32, and x is float64"
    if B.shape[3] > 256:
        return f"the kernels hold states of up to 256, and B has {B.shape[3]}"
    if chunk is not None and (chunk < 16 or chunk & (chunk - 1)):
        return f"the kernels need a chunk that is a power of 2 of at least 16, and chunk is {chunk}"
    if 0 in x.shape:
        return "the kernels need at least one token"
    found = _combined()
    return found if isinstance(found, str) else None


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
    """What `chunks.scan` computes, by mamba_ssm."""
    y, final = _combined()(
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
    return y, final.float()
