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
TOO_LARGE = "more than 2^28 numbers at once"
#: Up to this length causal attention is timed whole. Past it one head is, times their number: heads are independent
#: problems, and at 128K tokens all of them would take minutes a round.
WHOLE = 32768


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **how: object) -> torch.Tensor:
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    return scaled_dot_product_attention(q, k, v, **how)


def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[Run, int]:
    """Causal SDPA, and how many times its time all heads take."""
    if q.shape[2] <= WHOLE or q.is_cuda:
        return lambda: _sdpa(q, k, v, is_causal=True), 1
    one = [x[:, :1].detach().requires_grad_(x.requires_grad) for x in (q, k, v)]
    return lambda: _sdpa(*one, is_causal=True), q.shape[1]


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


def _rule(pattern: Pattern, n: int, heads: int, group: int) -> Callable[..., torch.Tensor]:
    """The pattern as (head, row, column) -> bool that torch can trace; drawn blocks are looked up in a table."""
    if isinstance(pattern, Union):
        rules = [_rule(member, n, heads, group) for member in pattern.members]
        return lambda h, row, column: reduce(torch.logical_or, (rule(h, row, column) for rule in rules))
    if isinstance(pattern, Global):
        return lambda h, row, column: column < pattern.tokens
    if isinstance(pattern, Random):
        size, blocks = pattern.size, -(-n // pattern.size)
        table = torch.zeros(heads, blocks, blocks + 1, dtype=torch.bool)
        for head in range(heads):
            drawn = pattern.draws(torch.arange(blocks), head=head)
            table[head].scatter_(1, drawn.where(drawn >= 0, blocks), True)
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


def _block_mask(rule: Callable[..., torch.Tensor], n: int, heads: int, group: int, device: torch.device) -> object:
    """FlexAttention's block mask for heads that differ, made a key-value head at a time and put together.

    `create_block_mask` for all heads at once holds several tables of heads x n x n elements: 2.4 G each for 9 heads
    at 16K tokens.
    """
    from torch.nn.attention.flex_attention import BlockMask, create_block_mask

    each = [
        create_block_mask(lambda b, h, q, k, head=head: rule(b, head, q, k), None, None, n, n, device=device)
        for head in torch.arange(0, heads * group, group, device=device)
    ]
    lists = (
        torch.cat([getattr(one, name) for one in each], dim=1).repeat_interleave(group, dim=1)
        for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices")
    )
    return BlockMask.from_kv_blocks(*lists, each[0].BLOCK_SIZE, rule, seq_lengths=(n, n))


def flex_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pattern: Pattern, backward: bool) -> Flex:
    """Compiled FlexAttention with the pattern's own rule as its mask. Raises what torch raises."""
    from torch.nn.attention.flex_attention import create_block_mask
    from torch.nn.attention.flex_attention import flex_attention as kernel

    if backward and not q.is_cuda:
        raise NotImplementedError("FlexAttention has no backward on the CPU")

    n, heads, group = q.shape[2], k.shape[1], q.shape[1] // k.shape[1]
    seen = _rule(pattern, n, heads, group)

    def rule(b: torch.Tensor, h: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        return seen(h, row, column) & (column <= row)

    torch._dynamo.reset()
    begin = time.perf_counter()
    if pattern.by_head:
        mask = _block_mask(rule, n, heads, group, q.device)
    else:
        mask = create_block_mask(rule, None, None, n, n, device=q.device, _compile=q.is_cuda)
    made = time.perf_counter()
    compiled = torch.compile(kernel)

    def run() -> torch.Tensor:
        return compiled(q, k, v, block_mask=mask, enable_gqa=True)

    with torch.set_grad_enabled(backward):
        run()
    return Flex(run, made - begin, time.perf_counter() - made)
