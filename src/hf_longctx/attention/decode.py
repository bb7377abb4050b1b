"""A few new tokens against a long cache: read the keys that they can see, in one dense call.

Runs of keys are read where they are, every so-many-th key through a strided view, and scattered ones are copied
together first, so that the cost follows the visible keys. What to read (`reads.py`) is worked out once for all layers
that share a pattern and the caller's tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_longctx.attention import dense, kernels, sink
from hf_longctx.attention.dense import Sight
from hf_longctx.attention.layout import Layout
from hf_longctx.attention.reads import in_place, reads
from hf_longctx.attention.request import tracked
from hf_longctx.patterns import Pattern

#: Query rows up to which gathering is the better way.
FEW = 8


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
    """Attention of at most `FEW` rows. Arguments and result as in `reference.attend`.

    Only the visible keys are read; or, where these are scattered and most of all, every key from the first to the last
    of them. The mask, where there is one, has Lq x (keys read) elements.
    """
    heads = range(head, head + key.shape[1])
    heads = heads if pattern.by_head else heads[:1]
    device = query.device
    known = layout.shared(
        ("reads", device),
        pattern,
        lambda: reads(pattern, layout, device, layer=layer, heads=heads),
        layer=layer,
        heads=heads,
    )
    if known is None:
        return dense.attend(query, key, value, pattern, layout, scale=scale, layer=layer, head=head, sinks=sinks)
    graded = tracked(query, key, value, sinks)
    if known.index is not None:
        key, value = (_picked(x, known.index, graded) for x in (key, value))
    elif (
        1 < len(known.slices) <= in_place(device) and layout.queries == 1 and not graded and _has_kernel(query, value)
    ):
        return _merged(query, key, value, known.slices, scale, sinks)
    else:
        key, value = _sliced(key, known.slices), _sliced(value, known.slices)
    if key.shape[2] == 0:
        # Nothing to see. The sum keeps the result differentiable: its gradients are 0.
        zero = 0 * (query.sum(-1, keepdim=True) * 0 + sum(x.sum() for x in (key, value, sinks) if x is not None))
        return zero.expand(*query.shape[:-1], value.shape[-1]).nan_to_num()
    if known.loose and not graded:
        # A hidden key has no weight, but 0 * NaN is NaN: look for that afterwards, since it is rare. On the CPU alone.
        out = dense.masked(query, key, value, Sight(known.sight.seen, known.sight.blind), scale=scale, sinks=sinks)
        if bool(out.isfinite().all()):
            return out
    return dense.masked(query, key, value, known.sight, scale=scale, sinks=sinks)


def _has_kernel(query: Tensor, value: Tensor) -> bool:
    return (
        kernels.missing(query.device, query.dtype) is None and kernels.misfit(query.shape[-1], value.shape[-1]) is None
    )


def _merged(
    query: Tensor, key: Tensor, value: Tensor, slices: tuple[slice, ...], scale: float, sinks: Tensor | None
) -> Tensor:
    """One row against several slices of keys, each read where it is; the parts merge by their log-sum-exp."""
    rows = query.unflatten(1, (key.shape[1], -1)).flatten(2, 3)
    exact = torch.promote_types(query.dtype, torch.float32)
    (out, lse), *rest = (kernels.forward(rows, key[:, :, s], value[:, :, s], scale=scale) for s in slices)
    out = out.to(exact)
    for one, norm in rest:
        out = torch.lerp(out, one.to(exact), (norm - lse).sigmoid().unsqueeze(-1))
        lse = torch.logaddexp(lse, norm)
    if sinks is not None:
        sink.join(out, lse, sinks.unflatten(0, lse.shape[1:]))
    return out.to(query.dtype).unflatten(2, (-1, 1)).flatten(1, 2)


def _sliced(x: Tensor, slices: tuple[slice, ...]) -> Tensor:
    if len(slices) == 1:
        return x[:, :, slices[0]]
    return torch.cat([x[:, :, s] for s in slices], dim=2) if slices else x[:, :, :0]


def _picked(x: Tensor, index: Tensor, tracked: bool) -> Tensor:
    """Keys `index` (B or 1, Hkv or 1, S) of `x` (B, Hkv, Lk, D)."""
    row, head = (torch.arange(n, device=x.device) for n in x.shape[:2])
    row, head = row[:, None, None], head[:, None]
    size = x.shape[-1]
    if tracked or x.stride(-1) != 1 or any(step % size for step in x.stride()[:3]):
        return x[row, head, index]
    # As rows of one table, which is three to four times as fast.
    steps = [step // size for step in x.stride()[:3]]
    table = x.as_strided((1 + sum((n - 1) * step for n, step in zip(x.shape, steps)), size), (size, 1))
    at = row * steps[0] + head * steps[1] + index * steps[2]
    return table.index_select(0, at.flatten()).unflatten(0, at.shape)
