"""FlexAttention (Dong et al. 2024, arXiv 2412.05496): a block mask for each pattern, one compiled kernel for all.

The block mask names the full and the partial blocks of 128 x 128 pairs. The inside of a partial block is looked up,
never computed: equal blocks share one table of 128 x 128 bits, and the mask function only reads tables. So the
compiled code knows no pattern, layer, head or padding; a new one needs a new block mask and no compilation. Lengths
are symbolic in it, so that a longer input compiles nothing either.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from hf_longctx.attention import decode
from hf_longctx.attention.layout import Layout
from hf_longctx.attention.recent import Recent
from hf_longctx.attention.request import NO_SINKS, Request, spelled
from hf_longctx.patterns import Pattern
from hf_longctx.patterns.geometry import shapes_of

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Side of a block in tokens, FlexAttention's own choice.
BLOCK = 128
#: Key blocks looked at together, on a CPU and on a GPU, where the host waits for each stretch.
_BLOCKS = {"cpu": 32, "cuda": 512}
#: On CUDA always the kernel for many rows. The one for few, which torch takes below 128 rows, finds no valid tiling
#: where the rows of a group of heads are more than a block holds (pytorch PR 185349).
_OPTIONS: dict[str, Any] = {"cuda": {"BACKEND": "TRITON"}}
#: Head sizes below this are filled up with zeros on CUDA: its matrix units take no smaller ones.
_LEAST = 16
#: Compilations of one kernel (dtypes, head counts and sizes, lengths below a block) before torch gives up, loudly.
_COMPILATIONS = 64

#: The block masks used last of tokens without padding and documents; others live as long as their layout.
MASKS: Recent[Any] = Recent(64)


@dataclass(frozen=True, eq=False)
class _Mask:
    """A block mask, and which rows see nothing and which keys no row sees, (B or 1, Hkv or 1, tokens), or None."""

    block: Any
    blind: Tensor | None
    unread: Tensor | None


def cannot(request: Request) -> str | None:
    """Why FlexAttention cannot compute this, and what can; None if it can."""
    if request.sinks:
        return NO_SINKS
    device = request.device.type
    if device not in ("cpu", "cuda"):
        return f"it runs on CUDA and, forward only, on the CPU, and the tensors are on {device}; use 'dense'"
    if request.dtype not in DTYPES:
        return f"it takes {spelled(DTYPES)}, not {spelled((request.dtype,))}; use 'tiled' or 'dense'"
    if device == "cpu" and request.needs_grad:
        return "it has no backward on the CPU, and gradients are wanted; use 'tiled', or torch.no_grad()"
    return _no_compiler(device)


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
) -> Tensor:
    """Attention by FlexAttention. Arguments and result as in `reference.attend`; ask `cannot` first.

    At most `decode.FEW` new tokens on a longer cache read the visible keys alone (`decode.attend`): a kernel of blocks
    has nothing to offer there, and the block mask would be a new one for each token.
    """
    if layout.queries <= min(decode.FEW, layout.keys - 1):
        return decode.attend(query, key, value, pattern, layout, scale=scale, layer=layer, head=head)
    kv_heads, value_dim = key.shape[1], value.shape[-1]
    group = query.shape[1] // kv_heads
    mask = block_mask(pattern, layout, query.device, layer=layer, heads=range(head, head + kv_heads), group=group)
    # What nobody may read is replaced before it is multiplied: 0 * NaN is NaN.
    blind = None if mask.blind is None else mask.blind[..., None]
    if blind is not None:
        blind = blind.repeat_interleave(group, dim=1) if blind.shape[1] > 1 else blind
        query = query.masked_fill(blind, 0)
    if mask.unread is not None:
        key, value = (x.masked_fill(mask.unread[..., None], 0) for x in (key, value))
    if query.device.type == "cuda":
        query, key, value = (pad(x, (0, max(0, _LEAST - x.shape[-1]))) for x in (query, key, value))
    out = _run(query, key, value, mask.block, scale)[..., :value_dim]
    return out if blind is None else out.masked_fill(blind, 0)


def block_mask(
    pattern: Pattern, layout: Layout, device: torch.device, *, layer: int = 0, heads: range = range(1), group: int = 1
) -> _Mask:
    """The block mask of a pattern for `group` query heads to each of the key-value heads `heads`; remembered.

    Patterns that lower to the same shapes share one. A shape that depends on the layer or head says so.
    """
    own = heads if pattern.by_head else heads[:1]
    many = group if pattern.by_head else 1
    make = partial(_build, pattern, layout, device, layer, own, group)
    if not layout.plain:
        return layout.shared(("block mask", many, device), pattern, make, layer=layer, heads=own)
    return MASKS.get((shapes_of(pattern, layer, own), layout.queries, layout.keys, many, device), make)


def _build(pattern: Pattern, layout: Layout, device: torch.device, layer: int, heads: range, group: int) -> _Mask:
    """Look at the pattern a stripe of blocks at a time; memory is that of a stripe and of what is kept.

    Kept are one number for each block, and the bits of each different partial block: for patterns that repeat
    themselves a handful, for a rule without any order an eighth of a byte a pair.
    """
    batch = layout.batch
    # Two at least: torch compiles anew for sizes of 1.
    rows, keys = (max(2, -(-n // BLOCK)) for n in (layout.queries, layout.keys))
    # Which block of bits is where: the first is empty, the second full.
    slots = torch.zeros(batch, len(heads), rows, keys, dtype=torch.int32, device=device)
    bits = {bytes(BLOCK * BLOCK // 8): 0, b"\xff" * (BLOCK * BLOCK // 8): 1}
    blind = torch.ones(batch, len(heads), layout.queries, dtype=torch.bool, device=device)
    unread = torch.ones(batch, len(heads), layout.keys, dtype=torch.bool, device=device)
    ordered = layout.ordered()
    for i, a in enumerate(range(0, layout.queries, BLOCK)):
        b = min(a + BLOCK, layout.queries)
        for j, end in _stretches(pattern, layout, layer, a, b, ordered, _BLOCKS.get(device.type, 32)):
            c, d = j * BLOCK, min(end * BLOCK, layout.keys)
            seen = layout.visible(pattern, (a, b), (c, d), device=device, layer=layer, heads=heads)
            seen = seen.expand(batch, len(heads), b - a, d - c)
            blind[:, :, a:b] &= ~seen.any(3)
            unread[:, :, c:d] &= ~seen.any(2)
            seen = pad(seen, (0, -(d - c) % BLOCK, 0, BLOCK - (b - a))).unflatten(3, (-1, BLOCK)).transpose(2, 3)
            some, every = (f(f(seen, dim=-1), dim=-1) for f in (torch.any, torch.all))
            here = every.int()
            partly = some & ~every
            here[partly] = _number(seen[partly], bits).to(device)
            slots[:, :, i, j:end] = here
    table = torch.frombuffer(bytearray(b"".join(bits)), dtype=torch.uint8).view(-1, BLOCK, BLOCK // 8).to(device)
    return _Mask(_assemble(slots, table, layout, group), *(x if bool(x.any()) else None for x in (blind, unread)))


def _stretches(
    pattern: Pattern, layout: Layout, layer: int, start: int, stop: int, ordered: bool, most: int
) -> list[tuple[int, int]]:
    """Runs of at most `most` key blocks in which the rows [start, stop) may see something."""
    first = layout.keys - layout.queries
    spans = [(0, first + stop if ordered else layout.keys)]
    if layout.plain and not pattern.by_head:
        rows = pattern.rows(torch.arange(first + start, first + stop), layer=layer)
        if rows is not None and not rows.steps:
            spans = [(run.start, run.stop) for run in rows.slices() or ()]
    runs: list[tuple[int, int]] = []
    for a, b in spans:
        low, high = a // BLOCK, -(-min(b, layout.keys) // BLOCK)
        low = max(low, runs[-1][1]) if runs else low
        runs += [(j, min(j + most, high)) for j in range(low, high, most)]
    return runs


def _number(blocks: Tensor, bits: dict[bytes, int]) -> Tensor:
    """The number of each block (P, BLOCK, BLOCK) among the different ones seen so far, int32 (P,)."""
    powers = 2 ** torch.arange(8, device=blocks.device)
    packed = (blocks.unflatten(2, (-1, 8)) * powers).sum(-1).to(torch.uint8).flatten(1).cpu().numpy()
    return torch.tensor([bits.setdefault(one.tobytes(), len(bits)) for one in packed], dtype=torch.int32)


def _assemble(slots: Tensor, table: Tensor, layout: Layout, group: int) -> Any:
    """FlexAttention's own form of it."""
    from torch.nn.attention.flex_attention import BlockMask

    batch, heads, rows, keys = slots.shape
    # One dimension each, and steps as a tensor: the compiled code then depends on no shape of these.
    flat, bits = _fixed(slots.flatten()), _fixed(table.flatten())
    each = rows * keys
    steps = [each * heads if batch > 1 else 0, group, each if heads > 1 else 0, keys]
    step = torch.tensor(steps, dtype=torch.int32, device=slots.device)

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        slot = flat[b * step[0] + h // step[1] * step[2] + q // BLOCK * step[3] + k // BLOCK]
        byte = bits[(slot * BLOCK + q % BLOCK) * (BLOCK // 8) + k % BLOCK // 8]
        return (byte.to(torch.int32) >> (k % 8)) & 1 != 0

    def listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
        chosen = chosen.repeat_interleave(group, dim=1) if heads > 1 else chosen
        order = chosen.int().argsort(dim=-1, descending=True, stable=True)
        return chosen.sum(-1, dtype=torch.int32), order.to(torch.int32).contiguous()

    return BlockMask.from_kv_blocks(
        *listed(slots > 1), *listed(slots == 1), BLOCK, mask_mod, seq_lengths=(layout.queries, layout.keys)
    )


def _fixed(x: Tensor) -> Tensor:
    """On the CPU filled up to a power of two that torch takes as a constant.

    torch 2.13 writes C++ that does not compile where a mask function reads tables whose sizes are symbols, and there
    are ten or more symbols in all. A table that outgrows its size compiles once more.
    """
    if x.device.type != "cpu":
        return x
    x = pad(x, (0, (1 << max(15, (len(x) - 1).bit_length())) - len(x)))
    torch._dynamo.mark_static(x)
    return x


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


def _run(query: Tensor, key: Tensor, value: Tensor, mask: Any, scale: float) -> Tensor:
    with torch._dynamo.config.patch(recompile_limit=_COMPILATIONS):
        options = _OPTIONS.get(query.device.type)
        return _compiled()(query, key, value, block_mask=mask, scale=scale, enable_gqa=True, kernel_options=options)


@lru_cache(maxsize=4)
def _no_compiler(device: str) -> str | None:
    """Why torch cannot compile for a device, or None if it can."""
    if device == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "it is compiled by Triton, which is missing: pip install triton, or use 'tiled' or 'dense'"
        return None
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:  # torch raises its own kind, which has moved about
        return f"torch finds no C++ compiler to compile it with ({type(error).__name__}); use 'tiled' or 'dense'"
    return None
