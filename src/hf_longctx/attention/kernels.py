"""PyTorch's own flash kernel with its log-sum-exp: the one file that touches torch's private operators.

`aten::_scaled_dot_product_flash_attention_for_cpu` returns the log-sum-exp of each row, and its `_backward` accepts
one. That lets partial results be merged exactly, forward and backward (Dao 2023, arXiv 2307.08691, section 3.1).
"""

from __future__ import annotations

import torch
from torch import Tensor

#: The arguments that the operators had when this was written. A test compares them with the installed torch.
FORWARD_ARGUMENTS = ("query", "key", "value", "dropout_p", "is_causal", "attn_mask", "scale")
BACKWARD_ARGUMENTS = (
    "grad_out",
    "query",
    "key",
    "value",
    "out",
    "logsumexp",
    "dropout_p",
    "is_causal",
    "attn_mask",
    "scale",
)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def missing(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why there is no kernel for this device and dtype, or None if there is one."""
    if device.type != "cpu":
        return f"its kernel is for the CPU, and the tensors are on {device.type}"
    if dtype not in DTYPES:
        return f"its kernel takes {', '.join(str(d).removeprefix('torch.') for d in DTYPES)}, not {dtype}"
    return None


def misfit(head_dim: int, value_dim: int) -> str | None:
    """Why the kernel cannot take these head sizes, or None if it can."""
    if head_dim != value_dim:
        return f"its kernel needs keys and values of one head size, not {head_dim} and {value_dim}"
    return None


def forward(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, causal: bool = False, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Dense attention of a batch of problems.

    Args:
        query: (B, H, R, D).
        key: (B, H, K, D).
        value: (B, H, K, D).
        scale: factor on the scores.
        causal: row i sees keys up to i.
        mask: (R, K) added to the scores, in `mask_dtype(query.dtype)`.

    Returns:
        Output (B, H, R, D), and log-sum-exp of the scores (B, H, R), float32 (float64 for float64). The log-sum-exp
        of a row that the mask hides altogether comes back as 0: it means nothing.
    """
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        _unit(query), _unit(key), _unit(value), 0.0, causal, attn_mask=mask, scale=scale
    )


def backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    scale: float,
    causal: bool = False,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `forward` with respect to query, key and value.

    `out` and `lse` may be those of a larger problem of which this one holds some of the keys: the gradients are then
    this part's share of the larger problem's.
    """
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        _unit(grad), _unit(query), _unit(key), _unit(value), _unit(out), lse, 0.0, causal, attn_mask=mask, scale=scale
    )


def mask_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the mask that belongs to a query of `dtype` (a float32 mask on a float64 query gives garbage)."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _unit(x: Tensor) -> Tensor:
    """The kernel wants the elements of a head next to each other."""
    return x if x.stride(-1) == 1 else x.contiguous()
