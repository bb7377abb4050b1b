"""A GPU made of CPU memory: finds tensors left on the wrong device, and kernels called in a way CUDA refuses.

Tensors made for the device "meta" inside `FarDevice` say that they are there, and hold CPU memory ("cuda" itself
cannot be named where torch has none). An operator that mixes them with tensors of the CPU raises, as it would on a
GPU. The CUDA kernels of `attention/kernels.py` are emulated in float64, with the checks that the real ones make.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

FAR = torch.device("meta")
aten = torch.ops.aten
#: What a GPU takes from the CPU: copies, and the operators that read an index wherever it is.
_MIXED = (aten._to_copy.default, aten.copy_.default, aten.index.Tensor)


#: What the forward kernel gives for rows that see no key; no documentation says.
EMPTY = {"out": 0.0, "lse": 0.0}
#: How many such rows there were, call by call.
HIDDEN: list[int] = []
#: Operators that hand the host a value, for which it waits: each call on a far tensor is noted in `WAITS`.
_ASKS = (
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.repeat_interleave.Tensor,
)
WAITS: list[str] = []


class Far(torch.Tensor):
    """A tensor that says it is on the far device."""

    @staticmethod
    def __new__(cls, near: Tensor):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            near.shape,
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=FAR,
        )

    def __init__(self, near: Tensor):
        self.near = near

    #: It has values.
    is_meta = False

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class FarDevice(TorchDispatchMode):
    """Inside, what is made for `FAR` is a `Far` tensor."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


def _run(function, args, kwargs):
    # `torch.tensor([], device=...)`, which asks no mode.
    args, kwargs = _mapped(lambda x: Far(torch.empty(0)) if _nothing(x) else x, (args, kwargs))
    tensors = list(_tensors((args, kwargs)))
    far = any(isinstance(x, Far) for x in tensors)
    named = kwargs.get("device")
    by_mask = function is aten.index.Tensor and any(x is not None and x.dtype == torch.bool for x in args[1])
    leaves = named is not None and torch.device(named).type == "cpu"
    if far and (function in _ASKS or by_mask or leaves):
        WAITS.append(str(function))
    if named is not None:
        far = torch.device(named).type == "meta"
        kwargs = {**kwargs, "device": "cpu"}
    elif far and function not in _MIXED:
        lost = [tuple(x.shape) for x in tensors if not isinstance(x, Far) and x.dim()]
        assert not lost, f"{function} is given tensors {lost} on the CPU and others far away"
    if function is aten.copy_.default:
        far = isinstance(args[0], Far)
        WAITS.extend([str(function)] * (isinstance(args[1], Far) and not far))
    args, kwargs = _mapped(lambda x: x.near if isinstance(x, Far) else x, (args, kwargs))
    own = {aten._efficient_attention_forward.default: _forward, aten._efficient_attention_backward.default: _backward}
    result = own.get(function, function)(*args, **kwargs)
    return _mapped(Far, result) if far else result


def _mapped(change: Callable[[Tensor], Tensor], x: Any) -> Any:
    """An operator's arguments or results with each tensor changed; torch's own trees take longer than operators."""
    if isinstance(x, Tensor):
        return change(x)
    if type(x) in (tuple, list):
        return type(x)([_mapped(change, one) for one in x])
    return {name: _mapped(change, one) for name, one in x.items()} if type(x) is dict else x


def _tensors(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, tuple | list | dict):
        for one in x.values() if isinstance(x, dict) else x:
            yield from _tensors(one)


def _nothing(x):
    return not isinstance(x, Far) and x.device == FAR and x.shape == (0,)


# ---------------------------------------------------------------------- the kernels


def _check(q, k, v, bias):
    assert q.dtype in (torch.float32, torch.bfloat16, torch.float16)
    for x in (q, k, v):
        assert x.dim() == 4
        assert x.stride(-1) == 1
        assert x.shape[-1] % 8 == 0
        assert x.storage_offset() % 8 == 0
        assert all(s % 8 == 0 for n, s in zip(x.shape[:-1], x.stride()) if n > 1)
        assert x.shape[0] <= 65535
        assert x.shape[2] <= 65535
    assert q.shape[0] == k.shape[0] == v.shape[0]
    assert q.shape[2] == k.shape[2] == v.shape[2]
    assert q.shape[1] > 0
    assert k.shape[1] > 0
    if bias is not None:
        assert bias.dtype == q.dtype
        assert bias.shape == (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
        assert bias.stride(-1) == 1
        assert bias.storage_offset() % 8 == 0
        assert all(s % 8 == 0 for n, s in zip(bias.shape[:-1], bias.stride()) if n > 1)


def _scores(q, k, bias, kind, scale):
    scores = scale * torch.einsum("bihd,bjhd->bhij", q.double(), k.double())
    if bias is not None:
        scores = scores + bias.double()
    if kind == 1:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -math.inf)
    assert kind in (0, 1)
    return scores


def _forward(q, k, v, bias, cu_q, cu_k, most_q, most_k, dropout, kind, keep, *, scale):
    assert (cu_q, cu_k, dropout, keep) == (None, None, 0.0, True)
    _check(q, k, v, bias)
    scores = _scores(q, k, bias, kind, scale)
    lse = scores.logsumexp(-1)
    blind = lse == -math.inf
    weights = (scores - lse.masked_fill(blind, 0)[..., None]).exp()
    out = torch.einsum("bhij,bjhd->bihd", weights, v.double()).to(q.dtype)
    HIDDEN.extend([int(blind.sum())] * bool(blind.any()))
    out.masked_fill_(blind.transpose(1, 2)[..., None], EMPTY["out"])
    full = torch.full((*lse.shape[:2], -(-q.shape[1] // 32) * 32), math.inf)
    full[..., : q.shape[1]] = lse.masked_fill(blind, EMPTY["lse"])
    seed = torch.zeros((), dtype=torch.int64)
    return out, full, seed, seed, q.shape[1], k.shape[1]


def _backward(
    grad, q, k, v, bias, out, cu_q, cu_k, most_q, most_k, lse, dropout, seed, offset, kind, wanted, *, scale
):
    assert (cu_q, cu_k, dropout, wanted) == (None, None, 0.0, False)
    assert (most_q, most_k) == (q.shape[1], k.shape[1])
    _check(q, k, v, bias)
    for x in (grad, out):
        assert x.shape == (*q.shape[:3], v.shape[3])
        assert x.dtype == q.dtype
        assert x.stride(-1) == 1
    # The kernel goes from row to row of `out` in steps of H * D, whatever the tensor's own are.
    assert out.shape[1] == 1 or out.stride(1) == out.shape[2] * out.shape[3]
    assert lse.dtype == torch.float32
    assert lse.shape == (q.shape[0], q.shape[2], -(-q.shape[1] // 32) * 32)
    assert all(s % 8 == 0 for n, s in zip(lse.shape[:2], lse.stride()) if n > 1)
    assert bool((lse[..., q.shape[1] :] == math.inf).all())
    weights = (_scores(q, k, bias, kind, scale) - lse[..., : q.shape[1], None].double()).exp()
    g, o = grad.double(), out.double()
    dv = torch.einsum("bhij,bihd->bjhd", weights, g)
    dp = torch.einsum("bihd,bjhd->bhij", g, v.double()) - (g * o).sum(-1).transpose(1, 2)[..., None]
    ds = scale * weights * dp
    dq, dk = torch.einsum("bhij,bjhd->bihd", ds, k.double()), torch.einsum("bhij,bihd->bjhd", ds, q.double())
    return tuple(x.to(q.dtype) for x in (dq, dk, dv)) + (torch.zeros(()),)
