"""One dense call under a mask: right for every pattern, fast where the input is short."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from hf_longctx.attention import sink
from hf_longctx.attention.layout import Layout
from hf_longctx.attention.request import tracked
from hf_longctx.patterns import Pattern

#: Mask elements held at once. Longer inputs are taken a few rows at a time.
_MASK = 1 << 24


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
    """PyTorch's attention under the pattern as a mask. Arguments and result as in `reference.attend`.

    Long inputs are taken a few rows at a time; for training, each part is computed again in the backward pass, so that
    the masks of all parts never exist together.
    """
    kv_heads = key.shape[1]
    heads = range(head, head + kv_heads)
    group = query.shape[1] // kv_heads
    masks = layout.batch * group * (kv_heads if pattern.by_head else 1)
    step = max(1, _MASK // (masks * layout.keys))
    if layout.queries <= step:
        every = (0, layout.queries), (0, layout.keys)
        sight = layout.shared(
            ("sight", query.device),
            pattern,
            lambda: Sight.of(layout.visible(pattern, *every, device=query.device, layer=layer, heads=heads)),
            layer=layer,
            heads=heads,
        )
        return masked(query, key, value, sight, scale=scale, sinks=sinks)

    ordered = layout.ordered()
    first = layout.keys - layout.queries

    def part(query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, start: int) -> Tensor:
        stop = min(start + step, layout.queries)
        end = first + stop if ordered else layout.keys
        seen = layout.visible(pattern, (start, stop), (0, end), device=query.device, layer=layer, heads=heads)
        q, k, v = query[:, :, start:stop], key[:, :, :end], value[:, :, :end]
        return masked(q, k, v, Sight.of(seen), scale=scale, sinks=sinks)

    starts = range(0, layout.queries, step)
    if tracked(query, key, value, sinks):
        parts = [checkpoint(part, query, key, value, sinks, start, use_reentrant=False) for start in starts]
    else:
        parts = [part(query, key, value, sinks, start) for start in starts]
    return torch.cat([p for p in parts if p is not None], dim=2)


@dataclass(frozen=True)
class Sight:
    """A mask that has been looked at: made once, it serves all layers.

    Attributes:
        seen: bool (B or 1, Hkv or 1, R, K), rows that see nothing opened; None where all is seen.
        blind: rows that see nothing, bool (B or 1, Hkv or 1, R, 1); None where there are none.
        unread: keys that no row sees, bool (B or 1, Hkv or 1, K, 1); None where there are none.
    """

    seen: Tensor | None = None
    blind: Tensor | None = None
    unread: Tensor | None = None

    @classmethod
    def of(cls, seen: Tensor) -> Sight:
        """Look at `seen`, bool (B or 1, Hkv or 1, R, K)."""
        if bool(seen.all()):
            return cls()
        blind, unread = ~seen.any(-1, keepdim=True), ~seen.any(-2).unsqueeze(-1)
        some_blind, some_unread = bool(blind.any()), bool(unread.any())
        return cls(
            seen | blind if some_blind else seen, blind if some_blind else None, unread if some_unread else None
        )

    def to(self, device: torch.device) -> Sight:
        """The same on another device."""
        return Sight(*(None if x is None else x.to(device) for x in (self.seen, self.blind, self.unread)))


def masked(
    query: Tensor, key: Tensor, value: Tensor, sight: Sight, *, scale: float, sinks: Tensor | None = None
) -> Tensor:
    """One call under a mask.

    Args:
        query: (B, Hq, R, D).
        key: (B, Hkv, K, D).
        value: (B, Hkv, K, Dv).
        sight: who sees what.
        scale: factor on the scores.
        sinks: (Hq,), if there are any.

    Returns:
        (B, Hq, R, Dv); 0 where a row sees no key, in gradients too. Keys that are `unread` are not read.
    """
    kv_heads = key.shape[1]
    group = query.shape[1] // kv_heads
    if sight.unread is not None:
        key, value = key.masked_fill(sight.unread, 0), value.masked_fill(sight.unread, 0)
    q = query.unflatten(1, (kv_heads, group))  # (B, Hkv, G, R, D)
    if sight.blind is not None:
        q = q.masked_fill(sight.blind[:, :, None], 0)
    seen = sight.seen
    if sinks is not None:
        out = sink.attend(q, key, value, seen, sinks, scale=scale)
    else:
        # The query heads of a group become rows of one problem, so that no key is repeated.
        if seen is not None and group > 1 and seen.shape[2] > 1:
            seen = seen[:, :, None].expand(-1, -1, group, -1, -1).flatten(2, 3)
        out = scaled_dot_product_attention(q.flatten(2, 3), key, value, attn_mask=seen, scale=scale)
        out = out.unflatten(2, (group, -1))
    if sight.blind is not None:
        out = out.masked_fill(sight.blind[:, :, None], 0)
    return out.flatten(1, 2)
