"""What attention under a pattern is compared with, each called as its documentation says.

Query (1, Hq, n, D), key and value (1, Hkv, n, D), as for `attend`. A function gives what to time, or None where it
does not fit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from torch.nn.functional import scaled_dot_product_attention

from hf_longctx.attention import attend, flash
from hf_longctx.patterns import Global, Pattern, Random
from hf_longctx.patterns.combine import Union

Run = Callable[[], torch.Tensor]

#: A mask is not made past this many elements, nor a reference past this many scores.
LARGEST_MASK, LARGEST_SCORES = 1 << 28, 1 << 28
#: A block mask is made from this many pairs at most on a CPU, `LARGEST_MASK` at a time.
LARGEST_BLOCK_MASK = 1 << 30
TOO_LARGE = "more than 2^28 numbers at once"
#: Up to this length attention over all pairs is timed whole. Past it one head is, times their number: heads are
#: independent problems, and at 128K tokens all of them would take minutes a round.
WHOLE = 32768


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **how: object) -> torch.Tensor:
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    return scaled_dot_product_attention(q, k, v, **how)


def few_heads(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The heads that attention over all pairs is timed on: every one, or one where they would take too long."""
    if q.shape[2] <= WHOLE or q.is_cuda:
        return q, k, v
    one, two, three = (x[:, :1].detach().requires_grad_(x.requires_grad) for x in (q, k, v))
    return one, two, three


def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Run:
    """Causal SDPA."""
    return lambda: _sdpa(q, k, v, is_causal=True)


def masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pattern: Pattern) -> Run | None:
    """SDPA under the pattern as a dense mask: how transformers would run it. The mask is made beforehand."""
    n = q.shape[2]
    if n * n > LARGEST_MASK:
        return None
    at = torch.arange(n, device=q.device)
    mask = (pattern.allows(at[:, None], at) & (at <= at[:, None]))[None, None]
    return lambda: _sdpa(q, k, v, attn_mask=mask)


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pattern: Pattern) -> Run | None:
    """The dense float32 definition that tests compare with."""
    if q.shape[1] * q.shape[2] ** 2 > LARGEST_SCORES:
        return None
    return lambda: attend(q, k, v, pattern, backend="reference")


def flash_attn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pattern: Pattern) -> Run:
    """flash-attn with its own window. ImportError without it, ValueError for a pattern that it does not know."""
    from flash_attn import flash_attn_func

    window = flash.window_of(pattern)
    if window is None:
        raise ValueError("it knows no such pattern")
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    how = {"causal": True, "window_size": (window - 1, 0) if window else (-1, -1)}
    return lambda: flash_attn_func(q, k, v, **how).transpose(1, 2)


def _rule(pattern: Pattern, n: int, heads: int, group: int, device: torch.device) -> Callable[..., torch.Tensor]:
    """The pattern as (head, row, column) -> bool that torch can trace; drawn blocks are looked up in a table."""
    if isinstance(pattern, Union):
        rules = [_rule(member, n, heads, group, device) for member in pattern.members]
        return lambda h, row, column: reduce(torch.logical_or, (rule(h, row, column) for rule in rules))
    if isinstance(pattern, Global):
        return lambda h, row, column: column < pattern.tokens
    if isinstance(pattern, Random):
        size, blocks = pattern.size, -(-n // pattern.size)
        table = torch.zeros(heads, blocks, blocks + 1, dtype=torch.bool)
        for head in range(heads):
            drawn = pattern.draws(torch.arange(blocks), head=head)
            table[head].scatter_(1, drawn.where(drawn >= 0, blocks), True)
        table = table.to(device)
        return lambda h, row, column: table[h // group, row // size, column // size]
    return lambda h, row, column: pattern.allows(row, column)


@dataclass(frozen=True)
class Flex:
    """Compiled FlexAttention under one pattern.

    Attributes:
        run: what to time.
        mask_seconds: what making the block mask took.
        compile_seconds: what the first call took.
    """

    run: Run
    mask_seconds: float
    compile_seconds: float


def _block_mask(rule: Callable[..., torch.Tensor], n: int, heads: list[int], device: torch.device) -> object:
    """FlexAttention's block mask for one rule, or for `heads` that differ, made in pieces and put together.

    `create_block_mask` holds several tables of heads x n x n elements at once: 24 GiB of them for one head at 32K
    tokens, and for 9 heads at 16K.
    """
    from torch.nn.attention.flex_attention import BlockMask, create_block_mask

    rows = min(n, max(128, LARGEST_MASK // n))
    firsts = torch.arange(0, n, rows, device=device)

    def piece(head: torch.Tensor, first: torch.Tensor) -> BlockMask:
        count = min(rows, n - int(first))
        part = lambda b, h, row, column: rule(b, head, first + row, column)  # noqa: E731
        return create_block_mask(part, None, None, count, n, device=device, _compile=device.type == "cuda")

    made = {head: [piece(torch.tensor(head, device=device), first) for first in firsts] for head in set(heads)}
    lists = (
        torch.cat([torch.cat([getattr(one, name) for one in made[head]], dim=2) for head in heads], dim=1)
        for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices")
    )
    return BlockMask.from_kv_blocks(*lists, made[heads[0]][0].BLOCK_SIZE, rule, seq_lengths=(n, n))


def flex_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pattern: Pattern, backward: bool) -> Flex:
    """Compiled FlexAttention with the pattern's own rule as its mask. Raises what torch raises."""
    from torch.nn.attention.flex_attention import flex_attention as kernel

    n, heads, group = q.shape[2], k.shape[1], q.shape[1] // k.shape[1]
    if backward and not q.is_cuda:
        raise NotImplementedError("FlexAttention has no backward on the CPU")
    if n * n > LARGEST_BLOCK_MASK and not q.is_cuda:
        raise ValueError(f"a block mask of {n:,} x {n:,} pairs takes minutes on a CPU")
    seen = _rule(pattern, n, heads, group, q.device)

    def rule(b: torch.Tensor, h: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        return seen(h, row, column) & (column <= row)

    torch._dynamo.reset()
    begin = time.perf_counter()
    differ = [head // group * group for head in range(heads * group)] if pattern.by_head else [0]
    mask = _block_mask(rule, n, differ, q.device)
    made = time.perf_counter()
    compiled = torch.compile(kernel)

    def run() -> torch.Tensor:
        return compiled(q, k, v, block_mask=mask, enable_gqa=True)

    with torch.set_grad_enabled(backward):
        run()
    return Flex(run, made - begin, time.perf_counter() - made)
