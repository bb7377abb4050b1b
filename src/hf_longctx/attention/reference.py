"""The oracle: attention as the formula says, in float32, a few rows at a time. Slow, and right for every pattern."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_longctx.attention.layout import Layout
from hf_longctx.patterns import Pattern

#: Scores held at once.
_SCORES = 1 << 24


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern,
    layout: Layout,
    *,
    scale: float,
    layer: int = 0,
    head: int = 0,
    sinks: Tensor | None = None,
) -> Tensor:
    """softmax(scale * Q K^T + mask) V (Vaswani et al. 2017, arXiv 1706.03762, equation 1), with a key-wise mask.

    Args:
        query: (B, Hq, Lq, D).
        key: (B, Hkv, Lk, D).
        value: (B, Hkv, Lk, Dv).
        pattern: who may see whom.
        layout: where the tokens are.
        scale: factor on the scores.
        layer: index of the layer.
        head: index of the first key-value head.
        sinks: (Hq,), for each query head the score of one more key, whose value is 0.

    Returns:
        (B, Hq, Lq, Dv) in the query's dtype; computed in float32, or float64 for float64. Rows that see no key are 0.
    """
    batch, kv_heads = key.shape[:2]
    heads = range(head, head + kv_heads)
    exact = torch.float64 if query.dtype == torch.float64 else torch.float32
    q = query.to(exact).unflatten(1, (kv_heads, -1))  # (B, Hkv, G, Lq, D)
    k, v = key.to(exact)[:, :, None], value.to(exact)[:, :, None]
    column = None if sinks is None else sinks.to(exact).unflatten(0, (kv_heads, -1))[..., None, None]
    step = max(1, _SCORES // (batch * query.shape[1] * layout.keys))
    parts = []
    for start in range(0, layout.queries, step):
        stop = min(start + step, layout.queries)
        seen = layout.visible(pattern, (start, stop), (0, layout.keys), device=query.device, layer=layer, heads=heads)
        seen = seen[:, :, None]  # the same for all query heads of a group
        blind = ~seen.any(-1, keepdim=True)
        unseen = ~seen.any(-2).unsqueeze(-1)
        # What nobody may read is replaced before it is multiplied: 0 * NaN is NaN.
        scores = scale * q[:, :, :, start:stop].masked_fill(blind, 0) @ k.masked_fill(unseen, 0).transpose(-1, -2)
        scores = scores.masked_fill(~seen & ~blind, float("-inf"))
        if column is not None:
            scores = torch.cat([scores, column.expand(*scores.shape[:-1], 1)], dim=-1)
        weights = scores.softmax(-1).masked_fill(blind, 0)
        parts.append(weights[..., : layout.keys] @ v.masked_fill(unseen, 0))
    return torch.cat(parts, dim=3).flatten(1, 2).to(query.dtype)
