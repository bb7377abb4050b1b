"""A few new tokens against a long cache: gather the keys that they can see, then one dense call."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hf_longctx.attention import dense, kernels
from hf_longctx.attention.layout import Layout
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
) -> Tensor:
    """Attention of at most `FEW` rows. Arguments and result as in `reference.attend`.

    Only the visible keys are read where the pattern's rows are spans that are the same for all heads. The mask has
    Lq x (visible keys) elements. Other patterns take one dense call over all keys.
    """
    seen: Tensor | None
    spans = _stored_spans(pattern, layout, layer)
    if spans is None and layout.plain:
        return dense.attend(query, key, value, pattern, layout, scale=scale, layer=layer, head=head)
    if spans is not None:
        if layout.queries == 1 and len(spans) > 1 and _has_kernel(query, key, value):
            return _merged(query, key, value, spans, scale)
        seen = None
        if layout.queries > 1 or not spans:
            at = torch.cat([torch.arange(a, b) for a, b in spans] or [torch.arange(0)]).to(query.device)
            seen = layout.visible(pattern, (0, layout.queries), at, device=query.device, layer=layer)
        return _masked(query, _slices(key, spans), _slices(value, spans), seen, scale)

    at_each = _gathered(pattern, layout, layer)
    if at_each is None or 2 * at_each.shape[1] > layout.keys:
        return dense.attend(query, key, value, pattern, layout, scale=scale, layer=layer, head=head)
    stored = at_each.clamp(min=0)
    seen = layout.visible(pattern, (0, layout.queries), stored, device=query.device, layer=layer)
    seen = seen & (at_each >= 0)[:, None, None, :]
    if len(stored) == 1:
        return _masked(query, key[:, :, stored[0]], value[:, :, stored[0]], seen, scale)
    each = torch.arange(len(stored), device=stored.device)[:, None]
    key, value = (x.transpose(1, 2)[each, stored].transpose(1, 2) for x in (key, value))
    return _masked(query, key, value, seen, scale)


def spans_of(pattern: Pattern, q: Tensor, *, layer: int = 0) -> list[tuple[int, int]] | None:
    """The keys that any of the rows `q` (R,) may see, as sorted disjoint spans; None where they are not spans.

    >>> from hf_longctx.patterns import Global, SlidingWindow
    >>> spans_of(SlidingWindow(4) | Global(2), torch.tensor([90, 91]))
    [(0, 2), (87, 92)]
    """
    if pattern.by_head:
        return None
    rows = pattern.rows(q, layer=layer)
    if rows is None or rows.steps:
        return None
    # Plain numbers: for so few rows the calls of torch would take longer than what they compute.
    ends = (q + 1).tolist()
    runs = ((start.expand_as(q).tolist(), stop.expand_as(q).tolist()) for start, stop in rows.spans)
    cut = ((max(a, 0), min(b, end)) for start, stop in runs for a, b, end in zip(start, stop, ends))
    pairs = sorted((a, b) for a, b in cut if a < b)
    merged: list[tuple[int, int]] = []
    for a, b in pairs:
        if merged and a <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(b, merged[-1][1]))
        else:
            merged.append((a, b))
    return merged


def _stored_spans(pattern: Pattern, layout: Layout, layer: int) -> list[tuple[int, int]] | None:
    """The indices of the stored keys that the rows may see, as spans; None where they are not, or differ by row."""
    if layout.plain:
        return spans_of(pattern, torch.arange(layout.keys - layout.queries, layout.keys), layer=layer)
    if layout.positions is None or layout.documents is not None:
        return None
    row = layout.positions[0]
    alike = len(layout.positions) == 1 or bool((layout.positions == row).all())
    if not alike or not bool((row[1:] >= row[:-1]).all()) or int(row[-layout.queries]) < 0:
        return None
    spans = spans_of(pattern, row[-layout.queries :].cpu(), layer=layer)
    if not spans:
        return spans
    stored = torch.searchsorted(row, torch.tensor(spans, device=row.device)).tolist()
    return [(a, b) for a, b in stored if a < b]


def _gathered(pattern: Pattern, layout: Layout, layer: int) -> Tensor | None:
    """Indices (B or 1, S) of the stored keys that the rows may see, -1 for filling; None where they are not spans."""
    if layout.positions is None:
        return None
    found = []
    for positions in layout.positions:
        q = positions[-layout.queries :]
        spans = spans_of(pattern, q[q >= 0].cpu(), layer=layer)
        if spans is None:
            return None
        keep = torch.zeros_like(positions, dtype=torch.bool)
        for a, b in spans:
            keep |= (positions >= a) & (positions < b)
        found.append(keep.nonzero()[:, 0])
    return pad_sequence(found, batch_first=True, padding_value=-1)


def _has_kernel(query: Tensor, key: Tensor, value: Tensor) -> bool:
    graph = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    return (
        not graph
        and kernels.missing(query.device, query.dtype) is None
        and kernels.misfit(query.shape[-1], value.shape[-1]) is None
    )


def _merged(query: Tensor, key: Tensor, value: Tensor, spans: list[tuple[int, int]], scale: float) -> Tensor:
    """One row against several spans of keys, each read where it is; the parts merge by their log-sum-exp."""
    rows = query.unflatten(1, (key.shape[1], -1)).flatten(2, 3)
    parts = [kernels.forward(rows, key[:, :, a:b], value[:, :, a:b], scale=scale) for a, b in spans]
    weights = torch.stack([lse for _, lse in parts]).softmax(0).unsqueeze(-1)
    out = (torch.stack([out for out, _ in parts]) * weights).sum(0)
    return out.to(query.dtype).unflatten(2, (-1, 1)).flatten(1, 2)


def _slices(x: Tensor, spans: list[tuple[int, int]]) -> Tensor:
    if len(spans) == 1:
        return x[:, :, slice(*spans[0])]
    return torch.cat([x[:, :, a:b] for a, b in spans], dim=2) if spans else x[:, :, :0]


def _masked(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, scale: float) -> Tensor:
    if key.shape[2] == 0:
        # Nothing to see. The sum keeps the result differentiable: its gradients are 0.
        zero = 0 * (query.sum(-1, keepdim=True) * 0 + key.sum() + value.sum())
        return zero.expand(*query.shape[:-1], value.shape[-1]).nan_to_num()
    return dense.masked(query, key, value, seen, scale=scale)
