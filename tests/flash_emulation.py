"""A dense stand-in for the variable-length flash kernels, with the meaning that their documentation gives them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int, int],
) -> Tensor:
    """flash-attn's: row i of a sequence with sq queries and sk keys sees the keys from i + sk - sq - left to
    i + sk - sq + right, both included; -1 leaves a side open, and `causal` closes the right one at 0.
    """
    _check(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    left, right = (window_size[0], 0) if causal else window_size
    return _sequences(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, left, right)


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool = False,
    **_: Any,
) -> Tensor:
    """torch.nn.attention.varlen's: the same bounds, and (-1, 0) is causal."""
    _check(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k)
    assert enable_gqa or query.shape[1] == key.shape[1]
    return _sequences(query, key, value, cu_seq_q, cu_seq_k, scale, *window_size)


def _check(q: Tensor, k: Tensor, v: Tensor, starts_q: Tensor, starts_k: Tensor, most_q: int, most_k: int) -> None:
    assert q.dim() == k.dim() == v.dim() == 3
    assert q.shape[-1] == k.shape[-1] == v.shape[-1]
    assert q.shape[-1] % 8 == 0
    for x, starts, most in ((q, starts_q, most_q), (k, starts_k, most_k)):
        assert starts.dtype == torch.int32
        assert int(starts[0]) == 0
        assert int(starts[-1]) == len(x)
        assert int(starts.diff().max()) == most
        assert int(starts.diff().min()) > 0


def _sequences(
    q: Tensor, k: Tensor, v: Tensor, starts_q: Tensor, starts_k: Tensor, scale: float, left: int, right: int
) -> Tensor:
    outs = []
    group = q.shape[1] // k.shape[1]
    for (a, b), (c, d) in zip(*(list(zip(s.tolist(), s.tolist()[1:])) for s in (starts_q, starts_k))):
        i = torch.arange(b - a)[:, None] + (d - c) - (b - a)
        j = torch.arange(d - c)
        seen = torch.ones(b - a, d - c, dtype=torch.bool)
        if left >= 0:
            seen &= j >= i - left
        if right >= 0:
            seen &= j <= i + right
        keys, values = (x[c:d].repeat_interleave(group, dim=1).double() for x in (k, v))
        scores = scale * torch.einsum("ihd,jhd->hij", q[a:b].double(), keys)
        weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
        outs.append(torch.einsum("hij,jhd->ihd", weights, values).to(q.dtype))
    return torch.cat(outs)
