"""The public operator: attention under a pattern."""

from __future__ import annotations

import logging
import math
from contextlib import nullcontext
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.weak import WeakTensorKeyDictionary

from hf_longctx.attention import backends, decode, flash
from hf_longctx.attention.backends import ATTEND, check_backend_name
from hf_longctx.attention.layout import Layout
from hf_longctx.attention.recent import Recent, base_of, same
from hf_longctx.attention.request import Request, one_pattern, tracked
from hf_longctx.compiling import eager
from hf_longctx.patterns import Heads, Pattern

logger = logging.getLogger(__name__)

#: The caller's tensors -> the layouts that were made of them last, for as long as they live.
_LAYOUTS = WeakTensorKeyDictionary()
_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


@eager
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern | str,
    *,
    scale: float | None = None,
    backend: str = "auto",
    valid: Tensor | None = None,
    segments: Tensor | None = None,
    layer: int = 0,
    positions: Tensor | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Causal attention in which each token sees the keys that a pattern allows. Differentiable.

    Queries are the last Lq of the Lk tokens. Patterns speak of logical positions: a token's index among the real
    tokens of its own document. A row that may see no key, and a padding row, is exactly 0, and so are its gradients.

    Args:
        query: (B, Hq, Lq, D), any floating dtype.
        key: (B, Hkv, Lk, D); Hq is a multiple of Hkv, and Lq at most Lk.
        value: (B, Hkv, Lk, Dv).
        pattern: a pattern, or its text form such as `window:1024+global:4`.
        scale: factor on the scores, 1/sqrt(D) if None.
        backend: how to compute it: `auto`, `reference` (float32, slow, for tests), `dense` (one call under a mask),
            `tiled` (cost follows the visible pairs), `flex` (FlexAttention; on the CPU forward only) or `flash` (a
            CUDA kernel, for windows and full attention). A name given is never replaced by another.
        valid: (B, Lk) bool, False for padding.
        segments: (B, Lk) integer ids of packed documents: each maximal run of equal ids is a document.
        layer: index of the layer, for patterns that depend on it.
        positions: (B or 1, Lk) integer logical positions, negative for padding, in place of `valid`: for caches from
            which keys have been dropped.
        sinks: (Hq,) of any floating dtype, learned sinks as in gpt-oss (arXiv 2508.10925): for each query head the
            score, not scaled, of one more key whose value is 0. Zeros give the softmax off by one; the first tokens
            can play that role without training (`global:4`, arXiv 2309.17453). -inf is no sink.

    What follows from `valid`, `segments` and `positions` is remembered with the tensors until torch says that they
    have been written to; whoever writes past torch (through `.numpy()` or `.data`) must pass a new tensor.

    Returns:
        (B, Hq, Lq, Dv) in the query's dtype. Under `torch.autocast` in autocast's dtype, in which it is then computed,
        whatever the backend and the length: so does torch's own attention (float64 stays as it is there). On the meta
        device it has a shape and a dtype alone, whatever the backend.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: shapes do not fit, the backend is unknown, or it cannot do what is asked.

    >>> from hf_longctx.patterns import Global, SlidingWindow
    >>> q, k, v = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8)
    >>> out = attend(q, k, v, SlidingWindow(2) | Global(1))
    >>> out.shape, torch.allclose(out, attend(q, k, v, "window:2+global:1", backend="reference"), atol=1e-6)
    (torch.Size([1, 4, 6, 8]), True)
    >>> out = attend(0 * q, k, torch.ones_like(v), "full", sinks=torch.zeros(4))  # the keys seen and the sink, alike
    >>> out[0, 0, :3, 0]
    tensor([0.5000, 0.6667, 0.7500])
    """
    pattern = one_pattern(pattern)
    check_backend_name(backend)
    query, key, value = _lowered(query, key, value)
    _check(query, key, value)
    _check_where(query, key, valid, segments, positions)
    _check_sinks(query, sinks)
    if not isinstance(layer, int) or layer < 0:
        raise ValueError(f"layer is {layer!r}: it must be the index of a layer, from 0 on")
    if query.is_meta:
        return outline(query, key, value, sinks)
    layout = _layout(query.shape[2], key.shape[2], valid=valid, segments=segments, positions=positions)
    return _checked(query, key, value, pattern, layout, scale=scale, backend=backend, layer=layer, sinks=sinks)


def outline(query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None = None) -> Tensor:
    """The result on the meta device, where there are shapes, dtypes and gradients of these, but no values.

    >>> query, key = torch.empty(1, 4, 3, 8, device="meta"), torch.empty(1, 2, 6, 8, device="meta")
    >>> attend(query, key, key[..., :5], "window:2").shape
    torch.Size([1, 4, 3, 5])
    """
    out = scaled_dot_product_attention(query, key, value, enable_gqa=True)
    return out if sinks is None else out * sinks.to(out.dtype)[:, None, None]


def attend_within(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern,
    layout: Layout,
    *,
    scale: float | None = None,
    backend: str = "auto",
    layer: int = 0,
    sinks: Tensor | None = None,
) -> Tensor:
    """`attend` where a caller keeps the layout himself, so that all his layers share it, and what hangs on it."""
    query, key, value = _lowered(query, key, value)
    _check(query, key, value)
    _check_sinks(query, sinks)
    check_backend_name(backend)
    if (layout.queries, layout.keys) != (query.shape[2], key.shape[2]) or layout.batch not in (1, len(query)):
        raise ValueError(
            f"layout is for {layout.queries} queries, {layout.keys} keys and a batch of {layout.batch}, but query has "
            f"shape {tuple(query.shape)} and key {tuple(key.shape)}: make one for these"
        )
    return _checked(query, key, value, pattern, layout, scale=scale, backend=backend, layer=layer, sinks=sinks)


def _checked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern,
    layout: Layout,
    *,
    scale: float | None,
    backend: str,
    layer: int,
    sinks: Tensor | None,
) -> Tensor:
    """Each run of heads that share a pattern by itself, of tensors that fit together and the layout."""
    scale = _scale(scale, query.shape[-1])
    if scale <= 0:  # torch's kernel has NaN for a whole block of rows then; the sign goes into the query, exactly
        query, scale = (-query, -scale) if scale else (query * 0, 1.0)
    if query.numel() == 0:
        return query.new_empty((*query.shape[:-1], value.shape[-1]))
    # Some backends call operators that autocast knows, others do not: none shall see it.
    kind = query.device.type
    with torch.autocast(kind, enabled=False) if _autocast(kind) else nullcontext():
        if not isinstance(pattern, Heads):
            return _attend(query, key, value, pattern, layout, sinks, scale=scale, backend=backend, layer=layer)
        group = query.shape[1] // key.shape[1]
        outs = []
        for one, run in pattern.runs(key.shape[1]):
            rows, own = slice(run.start * group, run.stop * group), slice(run.start, run.stop)
            q, k, v, s = query[:, rows], key[:, own], value[:, own], None if sinks is None else sinks[rows]
            outs.append(_attend(q, k, v, one, layout, s, scale=scale, backend=backend, layer=layer, head=run.start))
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern,
    layout: Layout,
    sinks: Tensor | None,
    *,
    scale: float,
    backend: str,
    layer: int,
    head: int = 0,
) -> Tensor:
    """Attention of heads that share one pattern, by the backend asked for."""
    needs_grad, sizes = tracked(query, key, value, sinks), (query.shape[-1], value.shape[-1])
    request = Request(pattern, query.device, query.dtype, *sizes, needs_grad, sinks is not None)
    if backend != "auto":
        backends.check(backend, request)
        compute = ATTEND[backend]
    else:
        chosen, reason = next(
            (name, why)
            for name, why in backends.preferred(request, layout.keys, layout.queries)
            if name != "flash" or flash.misplaced(layout, len(query)) is None
        )
        if logger.isEnabledFor(logging.INFO):
            _announce(str(pattern), chosen, reason)
        few = layout.queries <= min(decode.FEW, layout.keys - 1)
        compute = decode.attend if few and chosen == "dense" else ATTEND[chosen]
    extra = {} if sinks is None else {"sinks": sinks}  # not every backend takes them
    return compute(query, key, value, pattern, layout, scale=scale, layer=layer, head=head, **extra)


def _autocast(kind: str) -> bool:
    return torch.is_autocast_enabled(kind) if torch.amp.is_autocast_available(kind) else False


def _lowered(*tensors: Tensor) -> tuple[Tensor, ...]:
    """What autocast makes of query, key and value: nothing where one is float64 or no floating-point tensor.

    So `_check` names what the caller gave.
    """
    first = tensors[0]
    if not isinstance(first, Tensor) or not _autocast(first.device.type):
        return tensors
    if any(not isinstance(x, Tensor) or not x.is_floating_point() or x.dtype == torch.float64 for x in tensors):
        return tensors
    return tuple(x.to(torch.get_autocast_dtype(first.device.type)) for x in tensors)


def _layout(queries: int, keys: int, **tensors: Tensor | None) -> Layout:
    """`Layout.of`, once for all layers that are given the same tensors: what hangs on it is remembered with it."""
    given, first = same(*tensors.values()), next((x for x in tensors.values() if x is not None), None)
    if given is None or first is None:
        return Layout.of(queries, keys, **tensors)
    recent = _LAYOUTS.setdefault(base_of(first), Recent(4))
    return recent.get((queries, keys, given), lambda: Layout.of(queries, keys, **tensors))


@lru_cache(maxsize=1024)
def _announce(pattern: str, backend: str, reason: str) -> None:
    """Log a choice, once each."""
    logger.info("attention %s: backend %s (%s)", pattern, backend, reason)


def _scale(scale: float | None, head_dim: int) -> float:
    if scale is None:
        return 1 / math.sqrt(head_dim)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise TypeError(f"scale is {scale!r}: it must be a number, or None for 1/sqrt({head_dim})")
    if not math.isfinite(scale):
        raise ValueError(f"scale is {scale}: it must be finite, or None for 1/sqrt({head_dim})")
    return float(scale)


def _check(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Raise for tensors that do not fit together, naming the first that does not."""
    for name, x in (("query", query), ("key", key), ("value", value)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} is {type(x).__name__}: it must be a tensor (batch, heads, length, head size)")
        if x.dim() != 4:
            raise ValueError(f"{name} has shape {tuple(x.shape)}: it must be (batch, heads, length, head size)")
        if not x.is_floating_point():
            raise TypeError(f"{name} has dtype {x.dtype}: it must be floating point, such as torch.float32")
        if x.dtype != query.dtype or x.device != query.device:
            raise ValueError(
                f"{name} is {x.dtype} on {x.device}, but query is {query.dtype} on {query.device}: "
                "convert them to the same"
            )
        if x.dtype.itemsize == 1:
            raise TypeError(f"{name} has dtype {x.dtype}, in which torch cannot compute: convert it, as to bfloat16")
    (batch, heads, rows, size), (kv_batch, kv_heads, keys, kv_size) = query.shape, key.shape
    if size == 0:
        raise ValueError(f"query has shape {tuple(query.shape)}: its head size must be at least 1")
    if value.shape[:3] != key.shape[:3]:
        raise ValueError(f"value has shape {tuple(value.shape)}: all but the last must equal key's {tuple(key.shape)}")
    if kv_batch != batch or kv_size != size:
        raise ValueError(
            f"key has shape {tuple(key.shape)}: its batch and head size must equal query's {tuple(query.shape)}"
        )
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"query has {heads} heads: it must be a multiple of the {kv_heads} key-value heads")
    if rows > keys:
        raise ValueError(
            f"query has {rows} rows, but there are only {keys} keys: "
            "queries are the last tokens of the keys, so pass all keys"
        )


def _check_sinks(query: Tensor, sinks: Tensor | None) -> None:
    """Raise unless `sinks` is None or holds one number for each query head."""
    if sinks is None:
        return
    if not isinstance(sinks, Tensor):
        raise TypeError(f"sinks is {type(sinks).__name__}: it must be a tensor (query heads,)")
    if not sinks.is_floating_point() or sinks.dtype.itemsize == 1:
        raise TypeError(f"sinks has dtype {sinks.dtype}: it must be floating point, such as torch.float32")
    if sinks.shape != query.shape[1:2]:
        raise ValueError(
            f"sinks has shape {tuple(sinks.shape)}: it must be {(query.shape[1],)}, one number for each query head"
        )
    if sinks.device != query.device:
        raise ValueError(f"sinks is on {sinks.device}, but query is on {query.device}: move it there")


def _check_where(
    query: Tensor, key: Tensor, valid: Tensor | None, segments: Tensor | None, positions: Tensor | None
) -> None:
    """Raise for tensors that do not say of each key where it is."""
    if valid is not None and positions is not None:
        raise ValueError(
            "valid and positions are both given: mark padding by negative positions, or leave positions out"
        )
    for name, x in (("valid", valid), ("segments", segments), ("positions", positions)):
        _check_tokens(name, x, query, key.shape[2])


def _check_tokens(name: str, x: Tensor | None, query: Tensor, keys: int) -> None:
    """Raise unless `x` is None or says one thing of each key."""
    if x is None:
        return
    batch = query.shape[0]
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is {type(x).__name__}: it must be a tensor (batch, keys)")
    if name == "valid" and x.dtype != torch.bool:
        raise TypeError(f"valid has dtype {x.dtype}: it must be torch.bool, True for real tokens; use mask.bool()")
    if name != "valid" and x.dtype not in _INTEGERS:
        raise TypeError(f"{name} has dtype {x.dtype}: it must be whole numbers, such as torch.int64")
    batches = {batch, 1} if name == "positions" else {batch}
    if x.dim() != 2 or x.shape[0] not in batches or x.shape[1] != keys:
        raise ValueError(f"{name} has shape {tuple(x.shape)}: it must be {(batch, keys)}, one entry for each key")
    if x.device != query.device:
        raise ValueError(f"{name} is on {x.device}, but query is on {query.device}: move it there")
