"""PyTorch's own fused kernels with their log-sum-exp: the one file that touches torch's private operators.

They return the log-sum-exp of each row, and their backward accepts one. That lets partial results be merged exactly,
forward and backward (Dao 2023, arXiv 2307.08691, section 3.1). On the CPU it is
`aten::_scaled_dot_product_flash_attention_for_cpu`. On CUDA it is `aten::_efficient_attention_forward` (Rabe and
Staats 2021, arXiv 2112.05682, section 2): unlike the flash operators there it takes a mask, and float32. CUDA's wishes
are all met here: layout (B, rows, H, D), strides and head sizes in multiples of 8, a mask in the query's dtype, and a
log-sum-exp filled up to 32 rows. That path has not yet run on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

#: Operator -> the arguments that it had when this was written. A test compares them with the installed torch.
ARGUMENTS = {
    "_scaled_dot_product_flash_attention_for_cpu": "query key value dropout_p is_causal attn_mask scale",
    "_scaled_dot_product_flash_attention_for_cpu_backward": (
        "grad_out query key value out logsumexp dropout_p is_causal attn_mask scale"
    ),
    "_efficient_attention_forward": (
        "query key value bias cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k dropout_p custom_mask_type "
        "compute_log_sumexp scale seqlen_k window_size"
    ),
    "_efficient_attention_backward": (
        "grad_out_ query key value bias out cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k logsumexp dropout_p "
        "philox_seed philox_offset custom_mask_type bias_requires_grad scale num_splits_key window_size "
        "shared_storage_dqdkdv"
    ),
}

#: Device -> the dtypes that its kernel takes.
DTYPES = {
    "cpu": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}
#: Problems in one call, and heads of each: CUDA's grids end there.
MOST = (1 << 16) - 1
#: CUDA reads 16 bytes at a time; in elements of the narrowest dtype.
_ALIGN = 8
#: Rows to which CUDA's backward wants the log-sum-exp filled up.
_LSE_ROWS = 32
#: CUDA's names for masks of its own: none, and causal from the top left.
_NO_MASK, _CAUSAL = 0, 1


def missing(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why there is no kernel for this device and dtype, or None if there is one.

    >>> missing(torch.device("cpu"), torch.float32), missing(torch.device("cuda"), torch.float32)
    (None, None)
    """
    if device.type not in DTYPES:
        return f"its kernels are for {' and '.join(DTYPES)}, and the tensors are on {device.type}; use 'dense'"
    known = DTYPES[device.type]
    if dtype not in known:
        names = ", ".join(str(d).removeprefix("torch.") for d in known)
        return f"its kernel on {device.type} takes {names}, not {dtype}; use 'dense'"
    return None


def misfit(head_dim: int, value_dim: int) -> str | None:
    """Why the kernels cannot take these head sizes, or None if they can."""
    if head_dim != value_dim:
        return f"its kernel needs keys and values of one head size, not {head_dim} and {value_dim}; use 'dense'"
    return None


def fill(head_dim: int, device: torch.device) -> int:
    """How many zeros make a head size one that the kernel reads in place; `forward` copies others.

    >>> fill(59, torch.device("cuda")), fill(59, torch.device("cpu"))
    (5, 0)
    """
    return -head_dim % _ALIGN if device.type != "cpu" else 0


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
        mask: added to the scores, broadcast to (B, H, R, K), as `bias` makes it.

    Returns:
        Output (B, H, R, D), and log-sum-exp of the scores (B, H, R), float32 (float64 for float64). For a row that the
        mask hides altogether both mean nothing: on the CPU they are 0 and 0, elsewhere they may be NaN or infinite.
    """
    if query.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            _unit(query), _unit(key), _unit(value), 0.0, causal, attn_mask=mask, scale=scale
        )
    out, lse, *_ = torch.ops.aten._efficient_attention_forward(
        *(_aligned(x) for x in (query, key, value)),
        *(_bias(mask, query, key), None, None, None, None, 0.0, _CAUSAL if causal else _NO_MASK, True),
        scale=scale,
    )
    return out.transpose(1, 2)[..., : query.shape[-1]], lse[..., : query.shape[2]]


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
    if query.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *(_unit(x) for x in (grad, query, key, value, out)), lse, 0.0, causal, attn_mask=mask, scale=scale
        )
    seed = torch.zeros((), dtype=torch.int64, device=query.device)  # of dropout, which there is none of
    shares = torch.ops.aten._efficient_attention_backward(
        *(_aligned(x) for x in (grad, query, key, value)),
        # Of `out` it takes no step from row to row, and reads as if there were no gaps.
        *(_bias(mask, query, key), _aligned(out).contiguous(), None, None, query.shape[2], key.shape[2]),
        pad(lse, (0, -lse.shape[-1] % _LSE_ROWS), value=float("inf")).contiguous(),
        *(0.0, seed, seed, _CAUSAL if causal else _NO_MASK, False),
        scale=scale,
    )
    dq, dk, dv = (x.transpose(1, 2)[..., : query.shape[-1]] for x in shares[:3])
    return dq, dk, dv


def bias(seen: Tensor, query: Tensor, group: int = 1) -> Tensor:
    """The mask (..., group * R, K) that hides what is not `seen`, bool (..., R, K): 0 and -inf, for `query`'s kernel.

    On the CPU it is float32 (float64 for float64: a float32 mask on a float64 query gives garbage there). On CUDA it
    has the query's dtype, and its rows start 16 bytes apart or a multiple of that.
    """
    seen = seen.to(query.device)
    if query.device.type == "cpu":
        dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        hidden = torch.where(seen, torch.zeros((), dtype=dtype), torch.full((), float("-inf"), dtype=dtype))
        return hidden.repeat(*(1,) * (seen.dim() - 2), group, 1)
    seen = seen.repeat(*(1,) * (seen.dim() - 2), group, 1)
    wide = seen.shape[-1] + -seen.shape[-1] % _ALIGN
    whole = torch.zeros((*seen.shape[:-1], wide), dtype=query.dtype, device=query.device)
    return whole[..., : seen.shape[-1]].masked_fill_(~seen, float("-inf"))


def _unit(x: Tensor) -> Tensor:
    """The kernels want the elements of a head next to each other."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _aligned(x: Tensor) -> Tensor:
    """(B, H, R, D) as CUDA reads it: (B, R, H, D), all but the last stride, and the start, in multiples of 8."""
    if x.shape[-1] % _ALIGN:
        x = pad(x, (0, -x.shape[-1] % _ALIGN))
    steps = [step for size, step in zip(x.shape[:-1], x.stride()) if size > 1]
    if x.stride(-1) != 1 or any(s % _ALIGN for s in (*steps, x.storage_offset())):
        x = x.contiguous() if not x.is_contiguous() else x.clone()
    return x.transpose(1, 2)


def _bias(mask: Tensor | None, query: Tensor, key: Tensor) -> Any:
    """A mask for all problems, (B, H, R, K), repeated without being copied."""
    return None if mask is None else mask.expand(*query.shape[:3], key.shape[2])
