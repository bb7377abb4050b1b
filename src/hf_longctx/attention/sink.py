"""Learned sinks: a number of each query head, the score of one more key that all its rows see and whose value is 0.

They are those of gpt-oss (arXiv 2508.10925). With the log-sum-exp of the scores that a row sees, its output is
multiplied by sigmoid(lse - sink), and the log-sum-exp becomes logaddexp(lse, sink). A flash backward that is given
both computes the gradients of the larger problem, so that only those of the sinks themselves are left.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from hf_longctx.attention import kernels
from hf_longctx.attention.request import tracked
from hf_longctx.compiling import eager


def join(out: Tensor, lse: Tensor, sinks: Tensor) -> None:
    """Let the sinks join the softmax, in place. A row that has seen no key, with an `lse` of -inf, stays as it is.

    Args:
        out: (..., D), the outputs.
        lse: (...), log-sum-exp of the scores.
        sinks: of any floating dtype, broadcasts to `lse`.

    >>> out, lse = torch.ones(2, 1), torch.tensor([0.0, 3.0]).log()
    >>> join(out, lse, torch.zeros(()))
    >>> out[:, 0], lse.exp()
    (tensor([0.0000, 0.7500]), tensor([0., 4.]))
    """
    blind, sinks = lse == float("-inf"), sinks.to(lse.dtype)
    out.mul_((lse - sinks).sigmoid_().masked_fill_(blind, 0).unsqueeze(-1))
    lse.copy_(torch.logaddexp(lse, sinks).masked_fill_(blind, float("-inf")))


def gradient(grad: Tensor, out: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """Gradient of the sinks: their value is 0, so what is left of the softmax's is -weight * (grad . out).

    Args:
        grad: gradient of `out`, (..., D).
        out: the outputs that `join` made.
        lse: the log-sum-exp that it made.
        sinks: as there.

    Returns:
        As the sinks. Rows that see no key add nothing, whatever their gradient holds.
    """
    weight = (sinks.to(lse.dtype) - lse).exp_()
    share = (grad.to(lse.dtype) * out).sum(-1).mul_(weight).masked_fill_(lse == float("-inf"), 0)
    return share.neg_().sum_to_size(sinks.shape).to(sinks.dtype)


def attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, sinks: Tensor, *, scale: float) -> Tensor:
    """One dense call under a mask, with sinks.

    Args:
        query: (B, Hkv, G, R, D).
        key: (B, Hkv, K, D).
        value: (B, Hkv, K, Dv).
        seen: bool (B or 1, Hkv or 1, R, K), where each row sees a key; None where all is seen.
        sinks: (Hkv * G,).
        scale: factor on the scores.

    Returns:
        (B, Hkv, G, R, Dv) in the query's dtype.
    """
    sinks = sinks.unflatten(0, query.shape[1:3]).unsqueeze(-1)
    if kernels.missing(query.device, query.dtype) is not None:
        return _written_out(query, key, value, seen, sinks, scale)
    size = value.shape[-1]
    if kernels.misfit(query.shape[-1], size) is not None:
        wide = max(query.shape[-1], size)
        query, key, value = (pad(x, (0, wide - x.shape[-1])) for x in (query, key, value))
    if tracked(query, key, value, sinks):
        return _Dense.apply(query, key, value, seen, sinks, scale)[..., :size]
    return _forward(query, key, value, seen, sinks, scale)[0][..., :size]


class _Dense(torch.autograd.Function):
    """`_forward`, and its gradient by the kernel's.

    What is seen is kept rather than the mask made of it: all layers share it, and it is a quarter of the size.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, sinks: Tensor, scale: float
    ) -> Tensor:
        out, lse = _forward(query, key, value, seen, sinks, scale)
        ctx.save_for_backward(query, key, value, seen, sinks, out, lse)
        ctx.scale = scale
        return out

    @staticmethod
    @eager
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, seen, sinks, out, lse = ctx.saved_tensors
        g, q, o, total = (x.flatten(2, 3) for x in (grad, query, out, lse))
        dq, dk, dv = kernels.backward(g, q, key, value, o, total, scale=ctx.scale, mask=_mask(seen, query))
        own = gradient(grad, out, lse, sinks) if ctx.needs_input_grad[4] else None
        return dq.unflatten(2, query.shape[2:4]), dk, dv, None, own, None


def _mask(seen: Tensor | None, query: Tensor) -> Tensor | None:
    return None if seen is None else kernels.bias(seen, query, query.shape[2])


def _forward(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, sinks: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Output (B, Hkv, G, R, D) and log-sum-exp (B, Hkv, G, R). The heads of a group are rows of one problem."""
    out, lse = kernels.forward(query.flatten(2, 3), key, value, scale=scale, mask=_mask(seen, query))
    out, lse = (x.unflatten(2, query.shape[2:4]) for x in (out.to(lse.dtype), lse))
    join(out, lse, sinks)
    return out.to(query.dtype), lse


def _written_out(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, sinks: Tensor, scale: float
) -> Tensor:
    """The same by the formula, for devices and dtypes without a kernel."""
    exact = torch.promote_types(query.dtype, torch.float32)
    q, k, v, s = (x.to(exact) for x in (query, key[:, :, None], value[:, :, None], sinks[..., None]))
    scores = scale * q @ k.transpose(-1, -2)
    if seen is not None:
        scores = scores.masked_fill(~seen[:, :, None], float("-inf"))
    weights = torch.cat([scores, s.expand(*scores.shape[:-1], 1)], dim=-1).softmax(-1)
    return (weights[..., :-1] @ v).to(query.dtype)
