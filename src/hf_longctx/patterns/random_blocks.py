"""Random blocks (BigBird, arXiv 2007.14062, section 2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_longctx.patterns.base import Pattern, whole
from hf_longctx.patterns.geometry import Drawn, Shape
from hf_longctx.patterns.rows import Rows

_MASK32 = 0xFFFFFFFF
#: Query blocks, and draws for each, up to which plain numbers are quicker than tensors.
_FEW = 16


@dataclass(frozen=True)
class Random(Pattern, name="random"):
    """Each block of queries sees `blocks` earlier blocks of `size` tokens, drawn without replacement.

    The draw is a pure function of (seed, layer, key-value head, query block): it never depends on the length, so that
    prefill and decode agree. Where fewer earlier blocks exist all of them are seen; the own block never is, so join it
    with a window: `Random(3, 64) | SlidingWindow(128)`.

    Args:
        blocks: earlier blocks seen by each query block, at least 1.
        size: tokens in a block, at least 1.
        seed: any whole number from 0.

    >>> Random(1, 2, seed=3).count(6)
    8
    """

    blocks: int
    size: int
    seed: int = field(default=0, metadata={"named": True})

    by_head = True

    sees: ClassVar[str] = "k's block is drawn for q's block"
    source: ClassVar[str] = "BigBird, arXiv 2007.14062"
    used_by: ClassVar[str] = "BigBird (3 blocks of 64)"
    typical: ClassVar[str] = "random:3,64,seed=0"

    def __post_init__(self) -> None:
        whole(self, "blocks", self.blocks)
        whole(self, "size", self.size)
        whole(self, "seed", self.seed, least=0)

    def draws(self, block: Tensor, *, layer: int = 0, head: int = 0) -> Tensor:
        """The blocks that query blocks `block` (any shape) see: that shape plus (blocks,), int64, -1 where none.

        The last dimension is shorter where there are fewer earlier blocks than that for any of `block`.
        Floyd's sampling without replacement (Bentley and Floyd, 1987), driven by a counter-based hash.
        """
        if block.numel() <= _FEW and self.blocks <= _FEW:
            each = [_draw(self.blocks, self.seed, b, layer, head) for b in block.flatten().cpu().tolist()]
            most = max((len(one) for one in each), default=self.blocks)
            table = torch.tensor([[*one, *[-1] * (most - len(one))] for one in each], dtype=torch.int64)
            return table.view(*block.shape, most).to(block.device)
        block = block.to(torch.int64)
        earlier = int(block.max()) if block.numel() else 0
        if earlier <= self.blocks:
            # All of them, in order.
            every = torch.arange(min(max(earlier, 0), self.blocks), device=block.device)
            return torch.where(every < block[..., None], every, -1)
        chosen = torch.full((*block.shape, self.blocks), -1, dtype=torch.int64, device=block.device)
        for i in range(self.blocks):
            top = block - self.blocks + i  # the newest candidate that may be drawn in this round
            drawn = _hash(block, i, layer, head, self.seed) % (top + 1).clamp(min=1)
            taken = (chosen[..., :i] == drawn[..., None]).any(dim=-1)
            pick = torch.where(taken, top, drawn)
            # Fewer earlier blocks than wanted: take them all, in order.
            few = torch.where(i < block, torch.full_like(block, i), torch.full_like(block, -1))
            chosen[..., i] = torch.where(block >= self.blocks, pick, few)
        return chosen

    def allows(self, q: Tensor, k: Tensor, *, layer: int = 0, head: int = 0) -> Tensor:
        """K // size is one of the blocks drawn for q // size."""
        own, key_block = q // self.size, k // self.size
        drawn = self.draws(own, layer=layer, head=head)
        # Where there are no more than `blocks` earlier ones, all are seen.
        seen = (own <= self.blocks) & (key_block < own)
        for i in range(drawn.shape[-1] if int(own.max() if own.numel() else 0) > self.blocks else 0):
            seen = seen | (drawn[..., i] == key_block)
        return seen

    def rows(self, q: Tensor, *, layer: int = 0, head: int = 0) -> Rows:
        """A span for each drawn block."""
        own = q // self.size
        drawn = self.draws(own, layer=layer, head=head)
        if drawn.shape[-1] < self.blocks or not q.numel():
            return Rows(q, ((torch.zeros_like(q), own * self.size),))  # all earlier blocks
        spans = []
        for i in range(self.blocks):
            start = drawn[..., i] * self.size
            spans.append((start, torch.where(start >= 0, start + self.size, start)))
        return Rows(q, tuple(spans))

    def pieces(self, *, layer: int = 0, head: int = 0) -> tuple[Shape, ...]:
        """Whole blocks, chosen for each block of queries."""
        return (Drawn(self, self.size, layer, head),)


@lru_cache(maxsize=1 << 14)
def _draw(blocks: int, seed: int, block: int, layer: int, head: int) -> tuple[int, ...]:
    """What `Random.draws` gives for one block, in plain numbers: in a decoding step it is asked of a few rows."""
    if block <= blocks:
        return tuple(range(block))
    chosen: list[int] = []
    for i in range(blocks):
        top = block - blocks + i
        drawn = _hash(block, i, layer, head, seed) % (top + 1)
        chosen.append(top if drawn in chosen else drawn)
    return tuple(chosen)


def _hash(block: Any, i: int, layer: int, head: int, seed: int) -> Any:
    """A 32-bit number for draw `i` of a block (an int, or int64 tensor)."""
    return _mix(_mix(_mix(_mix(_mix(block + 1) + i) + layer) + head) + seed)


def _mix(x: Any) -> Any:
    """A 32-bit integer hash (the finaliser of MurmurHash3), in int64 without overflow."""
    x = x & _MASK32
    x = x ^ (x >> 16)
    x = _times(x, 0x85EBCA6B)
    x = x ^ (x >> 13)
    x = _times(x, 0xC2B2AE35)
    return x ^ (x >> 16)


def _times(x: Any, constant: int) -> Any:
    """X * constant modulo 2**32, in halves so that the product fits int64."""
    low, high = constant & 0xFFFF, constant >> 16
    return (x * low + (((x & 0xFFFF) * high) << 16)) & _MASK32
