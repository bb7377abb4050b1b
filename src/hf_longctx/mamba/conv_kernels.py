"""causal-conv1d's CUDA kernels, if installed: looked for when a CUDA tensor comes, never imported before.

Not yet run on a GPU: the tests hand their arguments to the definition, with the checks that the kernels make.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

#: Taps that the kernels are built for, and what channels and strides must be a multiple of.
TAPS, ALIGNED = (2, 4), 8


@cache
def _found() -> tuple[Any, Any] | None:
    """The convolution of a sequence and of one token, or None where they cannot be imported."""
    try:
        from causal_conv1d import causal_conv1d_fn, causal_conv1d_update
    except Exception:  # a broken build raises whatever it likes, and must not take the torch path with it
        return None
    return causal_conv1d_fn, causal_conv1d_update


def fits(x: Tensor, weight: Tensor, past: Tensor | None, documents: Tensor | None) -> bool:
    """Whether the kernels can take these tensors, which are those of `causal_conv`. Nothing is looked for on a CPU."""
    return (
        x.is_cuda
        and x.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and TAPS[0] <= weight.shape[1] <= TAPS[1]
        and x.shape[2] % ALIGNED == 0
        and 0 not in x.shape
        and (past is None or documents is None)  # they start either from a past or from documents, not from both
        and _found() is not None
    )


def sequence(x: Tensor, weight: Tensor, bias: Tensor, past: Tensor | None, documents: Tensor | None) -> Tensor:
    """The convolution of x (b, l, c), after `past` (b, c, K - 1) or within `documents` (b, l). Differentiable."""
    if past is not None:
        past = past.transpose(1, 2).contiguous().transpose(1, 2)  # channels side by side, as x has them
    y = _kernel(0)(
        x.transpose(1, 2),
        weight.contiguous(),
        bias,
        seq_idx=None if documents is None else documents.to(torch.int32).contiguous(),
        initial_states=past,
    )
    return y.transpose(1, 2)


def token(x: Tensor, past: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The convolution of one token x (b, c); `past` (b, c, K - 1) is carried over it in place."""
    return _kernel(1)(x, past, weight.contiguous(), bias)


def _kernel(index: int) -> Any:
    """One of the two, which `fits` has found."""
    found = _found()
    assert found is not None
    return found[index]
