"""The short causal convolution before the scan, over real tokens only; on CUDA by causal-conv1d if installed."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_longctx.mamba import conv_kernels


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    past: Tensor | None = None,
    valid: Tensor | None = None,
    documents: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Each channel's weighted sum of the last K real tokens of its document. Differentiable.

    Args:
        x: (b, l, c), any floating dtype.
        weight: (c, K), the current token's tap last.
        bias: (c,).
        past: (b, c, K - 1), the last inputs before these; 0 if None. They belong to the first token's document.
        valid: (b, l) bool, False for padding, which is skipped as if it were not there; all real if None.
        documents: (b, l) integers that change where a new document begins.

    Returns:
        y (b, l, c), 0 at padding, and the `past` of the next call, (b, c, K - 1), both in x's dtype.

    >>> x = torch.arange(1.0, 5).view(1, 4, 1)
    >>> y, past = causal_conv(x, torch.tensor([[1.0, 10.0]]), torch.zeros(1))
    >>> y.flatten().tolist(), past.flatten().tolist()
    ([10.0, 21.0, 32.0, 43.0], [4.0])
    """
    (batch, length, channels), before = x.shape, weight.shape[1] - 1
    weight, bias, slots = weight.to(x.dtype), bias.to(x.dtype), None
    past = None if past is None else past.to(x.dtype)
    if valid is not None:
        # Real tokens move together to the left; padding goes to one slot more, which is cut off.
        slots = torch.where(valid, valid.cumsum(1) - 1, length)
        x = _moved(x, slots[..., None])
        documents = None if documents is None else _moved(documents, slots)
    fast = conv_kernels.fits(x, weight, past, documents)
    if fast and past is not None and length == 1 and valid is None and not torch.is_grad_enabled():
        left = past.clone()  # caches replace what they hold
        return conv_kernels.token(x[:, 0], left, weight, bias)[:, None], left
    # The inputs with those before them; their end is enough where the kernels compute and no row is padded.
    start = x.new_zeros(batch, before, channels) if past is None else past.transpose(1, 2)
    end = slice(-before, None) if fast and valid is None else slice(None)
    full = torch.cat([start, x[:, end]], dim=1)
    ids = None
    if documents is not None:
        ids = torch.cat([documents[:, :1].expand(-1, before), documents[:, end]], dim=1)
    y = conv_kernels.sequence(x, weight, bias, past, documents) if fast else _sequence(x, full, ids, weight, bias)
    if valid is None or slots is None:
        last = slice(full.shape[1] - before, None)
        left = full[:, last].clone()  # a view would keep all of it
        kept = None if ids is None else ids[:, last]
    else:
        place = valid.sum(1)[:, None] + torch.arange(before, device=x.device)
        y = y.gather(1, slots.clamp(max=length - 1)[..., None].expand(-1, -1, channels)) * valid[..., None]
        left = full.gather(1, place[..., None].expand(-1, -1, channels))
        kept = None if ids is None else ids.gather(1, place)
    if kept is not None:
        left = left * (kept == kept[:, -1:])[..., None]
    return y, left.transpose(1, 2)


def _sequence(x: Tensor, full: Tensor, ids: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
    """Tap by tap in plain torch: `full` and its document `ids` begin K - 1 tokens before x."""
    length, before = x.shape[1], weight.shape[1] - 1
    y = torch.addcmul(bias, x, weight[:, before])
    for tap in range(before):
        seen = full[:, tap : tap + length]
        if ids is not None:
            seen = seen * (ids[:, tap : tap + length] == ids[:, before:])[..., None]
        y = torch.addcmul(y, seen, weight[:, tap])
    return y


def _moved(x: Tensor, slots: Tensor) -> Tensor:
    """Tokens of x (b, l, ...) at their new places, 0 elsewhere."""
    empty = x.new_zeros(x.shape[0], x.shape[1] + 1, *x.shape[2:])
    return empty.scatter(1, slots.expand_as(x), x)[:, :-1]
