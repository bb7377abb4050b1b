"""What the attention tests share: an independent oracle, and cases drawn by hypothesis."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from hf_longctx.patterns import (
    Block,
    Dilated,
    Fixed,
    Full,
    Global,
    Pattern,
    Random,
    Segment,
    SlidingWindow,
    Strided,
    Union,
)

#: Off the kernels' grids, on purpose.
HEAD_SIZES = (8, 40, 59, 64, 111)
LENGTHS = (1, 2, 31, 97, 113, 255, 257)
LAYOUTS = ("plain", "left", "right", "inner", "segments", "padded segments", "evicted")


@dataclass
class Case:
    query: Tensor
    key: Tensor
    value: Tensor
    pattern: Pattern
    where: dict[str, Tensor] = field(default_factory=dict)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.query, self.key, self.value

    @property
    def seen(self) -> Tensor:
        """Which keys each query row may see, (batch, 1 or Hkv, rows, keys)."""
        return seen(
            self.pattern, len(self.query), self.query.shape[2], self.key.shape[2], self.where, self.key.shape[1]
        )

    @property
    def blind(self) -> Tensor:
        """Which query rows see nothing, (batch, 1 or Hq, rows, 1)."""
        blind = ~self.seen.any(-1, keepdim=True)
        return blind.repeat_interleave(self.query.shape[1] // blind.shape[1], dim=1) if blind.shape[1] > 1 else blind

    def to(self, dtype: torch.dtype) -> Case:
        return Case(*(x.detach().to(dtype) for x in self.tensors), self.pattern, self.where)


class Odd(Pattern, name=None):
    """A pattern known by its rule alone: even rows see nothing."""

    def allows(self, q: Tensor, k: Tensor, *, layer: int = 0, head: int = 0) -> Tensor:
        return (q % 2 == 1) & (k % 3 == 0)


def single() -> Any:
    """One pattern of any kind, in sizes of which several blocks, classes and chunks fit the lengths."""
    small, size = st.integers(1, 40), st.integers(1, 150)
    return st.one_of(
        st.just(Full()),
        st.builds(SlidingWindow, size),
        st.builds(Global, small),
        st.builds(Dilated, small, st.integers(1, 70)),
        st.builds(Strided, small, size),
        st.builds(Block, size, st.integers(0, 3)),
        st.builds(Random, st.integers(1, 3), size, seed=st.integers(0, 3)),
        st.builds(Fixed, st.integers(3, 90), st.integers(1, 3)),
        st.builds(Segment, size, st.integers(1, 9)),
        st.just(Odd()),
    )


def patterns() -> Any:
    """A pattern, a union of two or three, and one seen through a window."""
    union = st.lists(single(), min_size=1, max_size=3).map(lambda ps: Union.of(*ps))
    segments = st.builds(
        lambda w, pairs: Union.of(*(Segment(w * m, r) for m, r in pairs)),
        st.integers(1, 40),
        st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6)), min_size=2, max_size=4),
    )
    return st.one_of(single(), union, union, segments, st.builds(lambda p, w: p.within(w), union, st.integers(1, 150)))


#: The default of `cases`.
FAST = patterns()


@st.composite
def cases(draw: Any, patterns: Any = FAST, lengths: tuple[int, ...] = LENGTHS) -> Case:
    """Queries, keys and values with a pattern and a layout; MHA, GQA and MQA; any number of query rows."""
    keys = draw(st.sampled_from(lengths))
    rows = draw(st.sampled_from(sorted({1, min(3, keys), keys, draw(st.integers(1, keys))})))
    batch, (kv_heads, group) = draw(st.integers(1, 2)), draw(st.sampled_from([(1, 1), (2, 1), (2, 3), (1, 4)]))
    size = draw(st.sampled_from(HEAD_SIZES))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def noise(*shape: int) -> Tensor:
        x = torch.randn(shape, generator=rng)
        # Half the time as a model lays its heads out: (B, L, H, D) seen as (B, H, L, D).
        return x.transpose(1, 2).contiguous().transpose(1, 2) if transposed else x

    transposed = draw(st.booleans())
    query = noise(batch, kv_heads * group, rows, size)
    key, value = noise(batch, kv_heads, keys, size), noise(batch, kv_heads, keys, size)
    where = layout(draw(st.sampled_from(LAYOUTS)), batch, keys, rng)
    return Case(query, key, value, draw(patterns), where)


def layout(kind: str, batch: int, keys: int, rng: torch.Generator) -> dict[str, Tensor]:
    """Keyword arguments of `attend` for one way to pad or pack."""
    at = torch.arange(keys).expand(batch, keys)
    cut = torch.randint(0, keys + 1, (batch, 1), generator=rng)
    ids = (torch.rand(batch, keys, generator=rng) > 0.97).cumsum(1)
    if kind == "left":
        return {"valid": at >= cut}
    if kind == "right":
        return {"valid": at < cut}
    if kind == "inner":
        return {"valid": torch.rand(batch, keys, generator=rng) > 0.3}
    if kind == "segments":
        return {"segments": ids}
    if kind == "padded segments":
        return {"segments": ids, "valid": at >= cut}
    if kind == "evicted":
        gap = int(torch.randint(0, 60, (1,), generator=rng))
        return {"positions": at + gap * (at >= cut)}
    return {}


def seen(pattern: Pattern, batch: int, rows: int, keys: int, where: dict[str, Tensor], heads: int = 1) -> Tensor:
    """Which keys each query row may see, one token at a time, straight from the definition.

    Bool (batch, H, rows, keys), where H is `heads` for patterns that differ by head, else 1.
    """
    heads = heads if pattern.by_head else 1
    mask = torch.zeros(batch, heads, rows, keys, dtype=torch.bool)
    for b in range(batch):
        position, document, number, count = [], [], -1, 0
        for t in range(keys):
            if t == 0 or ("segments" in where and where["segments"][b, t] != where["segments"][b, t - 1]):
                number, count = number + 1, 0
            real = "valid" not in where or bool(where["valid"][b, t])
            position.append(
                int(where["positions"][b % len(where["positions"]), t])
                if "positions" in where
                else count
                if real
                else -1
            )
            document.append(number)
            count += real
        p, d = torch.tensor(position), torch.tensor(document)
        q, k = p[keys - rows :, None], p[None, :]
        own = (k >= 0) & (k <= q) & (d[keys - rows :, None] == d[None, :])
        for h in range(heads):
            mask[b, h] = own & pattern.allows(q, k, head=h)
    return mask


def plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, sinks: Tensor | None = None) -> Tensor:
    """Textbook attention in the tensors' own dtype under a mask (B, 1 or Hkv, rows, keys); 0 for a row with no key."""
    group = query.shape[1] // key.shape[1]
    mask = mask.repeat_interleave(group, dim=1) if mask.shape[1] > 1 else mask
    k, v = (x.repeat_interleave(group, dim=1) for x in (key, value))
    scores = (query @ k.transpose(-1, -2)) * query.shape[-1] ** -0.5
    blind = ~mask.any(-1, keepdim=True)
    scores = scores.masked_fill(~(mask | blind), float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, _column(sinks, scores)], -1)
    weights = scores.softmax(-1)[..., : key.shape[2]]
    return weights.masked_fill(blind, 0) @ v


def fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, sinks: Tensor | None = None) -> Tensor:
    """The same by torch's own fused attention, whose backward starts from the rounded output; no gradient of sinks."""
    group = query.shape[1] // key.shape[1]
    mask = mask.repeat_interleave(group, dim=1) if mask.shape[1] > 1 else mask
    k, v = (x.repeat_interleave(group, dim=1) for x in (key, value))
    blind = ~mask.any(-1, keepdim=True)
    if sinks is not None:  # one more key of zeros, whose score is in the mask
        bias = torch.where(mask | blind, 0.0, float("-inf")).to(query.dtype).expand(*query.shape[:3], -1)
        bias, k, v = torch.cat([bias, _column(sinks.detach(), bias)], -1), pad(k, (0, 0, 0, 1)), pad(v, (0, 0, 0, 1))
        return scaled_dot_product_attention(query, k, v, attn_mask=bias).masked_fill(blind, 0)
    return scaled_dot_product_attention(query, k, v, attn_mask=mask | blind).masked_fill(blind, 0)


def _column(sinks: Tensor, scores: Tensor) -> Tensor:
    """Sinks (Hq,) as one more column of scores (B, Hq, rows, keys)."""
    return sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:3], 1)


def gradients(out: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Gradients under a fixed random weighting of the output, the same for every dtype."""
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(out.device, out.dtype)
    return torch.autograd.grad(out, inputs, weight)


def error(got: Tensor, exact: Tensor) -> float:
    """Largest absolute difference."""
    return float((got.detach().double() - exact.detach().double()).abs().max()) if got.numel() else 0.0


def rounding(dtype: torch.dtype, exact: Tensor) -> float:
    """What any computation in `dtype` may lose: plain attention's own error may happen to be 0.

    With one visible key its weight is exactly 1 and its query gradient exactly 0, where a flash backward subtracts two
    dot products over the head size that agree only to rounding.
    """
    roundings = 64 if dtype == torch.float32 else 0.5
    return roundings * torch.finfo(dtype).eps * max(1.0, float(exact.detach().abs().max()))
