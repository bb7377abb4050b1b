"""A flash kernel with a native window (Dao 2023, arXiv 2307.08691), for full attention and sliding windows on CUDA.

Documents and padded rows become sequences of their own: real tokens are laid one after the other, and the kernel is
told where each sequence starts. Kernels speak of the distance on either side, bounds included: a window of `window`
keys, the query's own among them, is (window - 1, 0).
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from hf_longctx.attention.layout import Layout
from hf_longctx.attention.recent import Recent
from hf_longctx.attention.request import NO_SINKS, Request, spelled
from hf_longctx.patterns import Pattern
from hf_longctx.patterns.geometry import Strip
from hf_longctx.patterns.pieces import disjoint

logger = logging.getLogger(__name__)

DTYPES = (torch.bfloat16, torch.float16)
#: The largest head size, and what head sizes must be a multiple of; others are filled up with zeros.
MOST_DIM, _ALIGN = 256, 8
#: What the kernels need of the hardware.
_CAPABILITY = (8, 0)

#: Where every row of the batch is one sequence: by lengths.
_EVEN: Recent[_Packed] = Recent(16)


@dataclass(frozen=True)
class _Kernel:
    """A function of (query, key, value, packed, scale, left): left is the window's left bound, -1 for none.

    It takes query (Tq, Hq, D), key and value (Tk, Hkv, D), and gives (Tq, Hq, D). Queries are the last of their
    sequence's keys.
    """

    name: str
    call: Callable[[Tensor, Tensor, Tensor, _Packed, float, int], Tensor]


@dataclass(frozen=True, eq=False)
class _Packed:
    """Where the sequences are.

    Attributes:
        rows: indices of the real query tokens among (B * Lq), or None where that is all of them in order.
        keys: indices of the keys that a sequence with queries has, among (B * Lk), or None for all in order.
        row_starts: int32 (sequences + 1), where each one's queries start, and their end.
        key_starts: the same for the keys.
        most_rows: the most queries of one sequence.
        most_keys: the most keys of one.
    """

    rows: Tensor | None
    keys: Tensor | None
    row_starts: Tensor
    key_starts: Tensor
    most_rows: int
    most_keys: int


def cannot(request: Request) -> str | None:
    """Why the kernel cannot compute this, and what can; None if it can."""
    if request.sinks:
        return NO_SINKS
    if request.device.type != "cuda":
        return (
            f"it needs a CUDA device, and the tensors are on {request.device.type}; move them to one, or use 'tiled'"
        )
    if request.dtype not in DTYPES:
        return f"it takes {spelled(DTYPES)}, not {spelled((request.dtype,))}; use 'tiled' or 'dense'"
    if window_of(request.pattern) is None:
        return "it computes full attention and sliding windows, nothing else; use 'tiled' or 'flex'"
    if request.sizes is not None:
        head_dim, value_dim = request.sizes
        if head_dim != value_dim:
            return f"it needs keys and values of one head size, not {head_dim} and {value_dim}; use 'dense'"
        if head_dim > MOST_DIM:
            return f"it takes head sizes to {MOST_DIM}, not {head_dim}; use 'tiled' or 'dense'"
    return _no_kernel(request.device)


def window_of(pattern: Pattern) -> int | None:
    """The window that a pattern is, 0 for full attention; None where it is neither, or differs by head.

    >>> from hf_longctx.patterns import Full, Global, SlidingWindow
    >>> [window_of(p) for p in (Full(), SlidingWindow(8), SlidingWindow(8).within(4), SlidingWindow(8) | Global(2))]
    [0, 8, 4, None]
    """
    shapes = None if pattern.by_head else pattern.pieces()
    pieces = disjoint(shapes) if shapes else ()
    strip = pieces[0].shape if len(pieces) == 1 and not pieces[0].minus else None
    if not isinstance(strip, Strip) or strip.low != 0 or strip.stop is not None:
        return None
    return strip.high or 0


def misplaced(layout: Layout, batch: int) -> str | None:
    """Why a window over the stored keys is not the window over logical positions, or None if it is."""
    if layout.positions is not None and pack(layout, batch, layout.positions.device) is None:
        return (
            "keys are missing between stored ones, or not in order, so that distances among the stored are not those "
            "of the pattern; use 'dense' or 'tiled'"
        )
    return None


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
    """Attention by one call of the kernel. Arguments and result as in `reference.attend`; ask `cannot` first.

    Raises:
        ValueError: as `misplaced` says.
    """
    packed, window = pack(layout, len(query), query.device), window_of(pattern)
    if packed is None or window is None:
        raise ValueError(f"backend is 'flash', which cannot compute {pattern} here: {misplaced(layout, len(query))}")
    (batch, heads, rows, size), wider = query.shape, -query.shape[-1] % _ALIGN
    if packed.most_rows == 0:
        return query.masked_fill(torch.ones_like(query, dtype=torch.bool), 0)  # padding alone; still differentiable
    q, k, v = (pad(x, (0, wider)) if wider else x for x in (query, key, value))
    q, k, v = (
        x.transpose(1, 2).flatten(0, 1) if at is None else x.transpose(1, 2).flatten(0, 1).index_select(0, at)
        for x, at in ((q, packed.rows), (k, packed.keys), (v, packed.keys))
    )
    out = kernel(query.device).call(q, k, v, packed, scale, window - 1)[..., :size]
    if packed.rows is not None:
        out = out.new_zeros(batch * rows, heads, size).index_copy(0, packed.rows, out)
    return out.unflatten(0, (batch, rows)).transpose(1, 2)


def pack(layout: Layout, batch: int, device: torch.device) -> _Packed | None:
    """The sequences of a layout, remembered; None where positions do not follow one another."""
    if layout.positions is None:
        key = (layout.queries, layout.keys, batch, device)
        return _EVEN.get(key, lambda: _even(layout.queries, layout.keys, batch, device))
    return layout.remember(("packed", batch), lambda: _pack(layout, batch))


def _even(queries: int, keys: int, batch: int, device: torch.device) -> _Packed:
    starts = [torch.arange(0, (batch + 1) * n, n, dtype=torch.int32, device=device) for n in (queries, keys)]
    return _Packed(None, None, starts[0], starts[1], queries, keys)


def _pack(layout: Layout, batch: int) -> _Packed | None:
    assert layout.positions is not None
    device, first = layout.positions.device, layout.keys - layout.queries
    near = layout.near()
    assert near.positions is not None
    positions = near.positions.expand(batch, -1)
    documents = torch.zeros_like(positions) if near.documents is None else near.documents.expand(batch, -1)
    tokens = (positions >= 0).nonzero()  # (real tokens, 2): row of the batch, index
    row, at = tokens.unbind(1)
    p, d = positions[row, at], documents[row, at]
    new = torch.ones(len(row), dtype=torch.bool)
    new[1:] = (row[1:] != row[:-1]) | (d[1:] != d[:-1])
    if bool((~new[1:] & (p[1:] != p[:-1] + 1)).any()):
        return None
    sequence = new.cumsum(0) - 1
    asks = at >= first
    number = int(sequence[-1]) + 1 if len(row) else 0
    rows, keys = (torch.bincount(s, minlength=number) for s in (sequence[asks], sequence))
    live = rows > 0  # sequences without a query are left out
    rows, keys, told = rows[live], keys[live], live[sequence]
    row_starts, key_starts = (pad(n.cumsum(0), (1, 0)).to(device, torch.int32) for n in (rows, keys))
    return _Packed(
        (row * layout.queries + at - first)[asks].to(device),
        (row * layout.keys + at)[told].to(device),
        row_starts,
        key_starts,
        int(rows.max()) if len(rows) else 0,
        int(keys.max()) if len(keys) else 0,
    )


# ---------------------------------------------------------------------- kernels


def kernel(device: torch.device) -> _Kernel:
    """The best kernel that is installed: FlashAttention 3 on Hopper, FlashAttention 2, or torch's own.

    Raises:
        ValueError: there is none.
    """
    found = _kernel(device)
    if found is None:
        raise ValueError(f"backend is 'flash', which cannot compute anything here: {_no_kernel(device)}")
    return found


@lru_cache(maxsize=8)
def _kernel(device: torch.device) -> _Kernel | None:
    hopper = torch.cuda.get_device_capability(device)[0] == 9
    for module, wanted in (("flash_attn_interface", hopper), ("flash_attn", True)):
        if wanted and importlib.util.find_spec(module) is not None:
            try:
                return _Kernel(module, _flash_attn(importlib.import_module(module).flash_attn_varlen_func))
            except Exception as error:  # built for another torch, or another package of that name
                logger.warning("%s cannot be used (%s: %s): looking further", module, type(error).__name__, error)
    if torch.backends.cuda.is_flash_attention_available():
        return _Kernel("torch.nn.attention.varlen", _torch_varlen)
    return None


@lru_cache(maxsize=8)
def _no_kernel(device: torch.device) -> str | None:
    if not torch.cuda.is_available():
        return "it needs a CUDA device, and torch finds none; use 'tiled' or 'dense'"
    capability = torch.cuda.get_device_capability(device)
    if capability < _CAPABILITY:
        return (
            f"it needs a GPU of compute capability {'.'.join(map(str, _CAPABILITY))} or later, and this one has "
            f"{'.'.join(map(str, capability))}; use 'tiled' or 'dense'"
        )
    if _kernel(device) is None:
        return "this torch has no flash kernel, and flash-attn is missing: pip install flash-attn, or use 'tiled'"
    return None


def _flash_attn(function: Callable[..., Any]) -> Callable[[Tensor, Tensor, Tensor, _Packed, float, int], Tensor]:
    """FlashAttention 2 and 3, which spell these arguments alike."""

    def call(query: Tensor, key: Tensor, value: Tensor, packed: _Packed, scale: float, left: int) -> Tensor:
        out = function(
            query,
            key,
            value,
            cu_seqlens_q=packed.row_starts,
            cu_seqlens_k=packed.key_starts,
            max_seqlen_q=packed.most_rows,
            max_seqlen_k=packed.most_keys,
            softmax_scale=scale,
            causal=True,
            window_size=(left, 0) if left >= 0 else (-1, -1),
        )
        return out[0] if isinstance(out, tuple) else out  # early releases of 3 give the log-sum-exp too

    return call


def _torch_varlen(query: Tensor, key: Tensor, value: Tensor, packed: _Packed, scale: float, left: int) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(
        query,
        key,
        value,
        packed.row_starts,
        packed.key_starts,
        packed.most_rows,
        packed.most_keys,
        scale=scale,
        window_size=(left, 0),
        enable_gqa=True,
    )
    return out if isinstance(out, Tensor) else out[0]
