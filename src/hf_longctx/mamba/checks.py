"""Bad input to the scans, refused before anything is computed."""

from __future__ import annotations

import torch
from torch import Tensor

_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    chunk: int | None,
    initial_state: Tensor | None,
    segments: Tensor | None,
) -> None:
    """Raise unless the arguments of `ssd` fit together, naming the first that does not."""
    _floats({"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "initial_state": initial_state}, x, "BC")
    batch, length, heads, size = _shape("x", x, "batch", "length", "heads", "head size")
    _same("dt", dt, (batch, length, heads), "one step size for each token and head")
    _same("A", A, (heads,), "one rate for each head of x")
    groups, n = _shape("B", B, "batch", "length", "groups", "state size")[2:]
    _same("B", B, (batch, length, groups, n), "with the batch and length of x")
    if C.shape != B.shape:
        _readers(C, (batch, length), heads, groups, n)
    _groups(heads, groups, "heads")
    if D is not None and D.shape != (heads,):
        _same("D", D, (heads, size), f"or {(heads,)}, one weight for each head")
    if initial_state is not None:
        _same("initial_state", initial_state, (batch, heads, size, n), "batch, heads, head size, state size")
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int)):
        raise TypeError(f"chunk is {chunk!r}: it must be a whole number of tokens, or None for the default")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}: it must be at least 1, or None for the default")
    _segments(segments, x)


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial_state: Tensor | None,
    segments: Tensor | None,
) -> None:
    """Raise unless the arguments of `selective_scan` fit together, naming the first that does not."""
    _floats({"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "initial_state": initial_state}, x, "BC")
    batch, length, channels = _shape("x", x, "batch", "length", "channels")
    _same("dt", dt, (batch, length, channels), "the shape of x")
    groups, n = _shape("B", B, "batch", "length", "groups", "state size")[2:]
    _same("A", A, (channels, n), "channels of x, state size of B")
    _same("B", B, (batch, length, groups, n), "with the batch and length of x")
    _same("C", C, (batch, length, groups, n), "the shape of B")
    _groups(channels, groups, "channels")
    if D is not None:
        _same("D", D, (channels,), "one weight for each channel of x")
    if initial_state is not None:
        _same("initial_state", initial_state, (batch, channels, n), "batch, channels, state size")
    _segments(segments, x)
    signs(dt, A)


def step(state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> bool:
    """Raise unless the arguments of `ssd_step` fit together, naming the first that does not.

    Returns:
        Whether they are as they mostly are: float32 on one device, and contiguous.
    """
    if _usual_step(state, x, dt, A, B, C, D):
        return True
    _floats({"state": state, "x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D}, state)
    batch, heads, size, n = _shape("state", state, "batch", "heads", "head size", "state size")
    if state.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"state has dtype {state.dtype}: it must be float32 or float64, as `ssd` returns it")
    if not state.is_contiguous():
        raise ValueError("state is not contiguous, and is changed in place: pass state.contiguous() and keep it")
    _same("x", x, (batch, heads, size), "batch, heads and head size of state")
    _same("dt", dt, (batch, heads), "one step size for each head of x")
    _same("A", A, (heads,), "one rate for each head of x")
    groups = _shape("B", B, "batch", "groups", "state size")[1]
    _same("B", B, (batch, groups, n), "with the batch and state size of state")
    if C.shape != B.shape:
        _readers(C, (batch,), heads, groups, n)
    _groups(heads, groups, "heads")
    if D is not None and D.shape != (heads,):
        _same("D", D, (heads, size), f"or {(heads,)}, one weight for each head")
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (state, x, dt, A, B, C, D)):
        raise ValueError(
            "ssd_step changes its state in place and has no gradients: call it under torch.no_grad(), or use ssd"
        )
    return False


def _usual_step(state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> bool:
    """Whether the arguments are as they mostly are, and certainly fit: a quick look, for a step takes microseconds."""
    try:
        shape, device, near = state.shape, state.device, state.is_cpu
        if torch.is_grad_enabled() or len(shape) != 4 or 0 in shape or B.dim() != 3 or C.dim() != 3:
            return False
        for t in (state, x, dt, A, B, C) if D is None else (state, x, dt, A, B, C, D):
            if t.dtype is not torch.float32 or not t.is_contiguous():
                return False
            if not (near and t.is_cpu) and t.device != device:  # asking for devices takes longer
                return False
        (batch, heads, size, n), groups, readers = shape, B.shape[1], C.shape[1]
        return (
            x.shape == (batch, heads, size)
            and dt.shape == (batch, heads)
            and A.shape == (heads,)
            and 0 not in (groups, readers)
            and B.shape == (batch, groups, n)
            and C.shape == (batch, readers, n)
            and heads % groups == 0
            and (readers == groups or (heads == groups and readers % groups == 0))
            and (D is None or D.shape == (heads,))
        )
    except AttributeError:  # no tensor
        return False


def signs(dt: Tensor, A: Tensor) -> None:
    """Raise ValueError for steps or rates that would make a state grow. NaN passes, to be seen in the result.

    Only on the CPU: elsewhere the host would have to wait for the answer, in every layer.
    """
    if not A.is_cpu:
        return
    if (A > 0).any():
        raise ValueError(f"A has {float(A.max()):.4g}: it must be at most 0, for states decay; pass -exp(A_log)")
    if (dt < 0).any():
        raise ValueError(f"dt has {float(dt.min()):.4g}: it must be at least 0; pass it through softplus first")


def _floats(named: dict[str, Tensor | None], first: Tensor, same: str = "") -> None:
    """Raise unless all are floating tensors on one device, those named in `same` in the dtype of `first`."""
    lead = next(iter(named))
    device = first.device if isinstance(first, Tensor) else None
    for name, t in named.items():
        if t is None and name in ("D", "initial_state"):
            continue
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} is {type(t).__name__}: it must be a tensor")
        if not t.dtype.is_floating_point:
            raise TypeError(f"{name} has dtype {t.dtype}: it must be floating point, such as torch.float32")
        if t.device != device:
            raise ValueError(f"{name} is on {t.device}, but {lead} is on {device}: move it there")
        if name in same and t.dtype != first.dtype:
            raise ValueError(f"{name} has dtype {t.dtype}, but {lead} has {first.dtype}: convert it to the same")


def _shape(name: str, t: Tensor, *axes: str) -> torch.Size:
    """The shape of `t`, which must have these axes; all but batch and length at least 1."""
    shape = t.shape
    if len(shape) != len(axes):
        raise ValueError(f"{name} has shape {tuple(shape)}: it must be ({', '.join(axes)})")
    if 0 in shape and 0 in shape[1 + ("length" in axes) :]:
        raise ValueError(f"{name} has shape {tuple(shape)}: only batch and length may be 0 in ({', '.join(axes)})")
    return shape


def _same(name: str, t: Tensor, shape: tuple[int, ...], why: str) -> None:
    if t.shape != shape:
        raise ValueError(f"{name} has shape {tuple(t.shape)}: it must be {shape}, {why}")


def _groups(heads: int, groups: int, what: str) -> None:
    if heads % groups:
        raise ValueError(f"B has {groups} groups: they must divide the {heads} {what} of x equally")


def _readers(C: Tensor, front: tuple[int, ...], heads: int, groups: int, n: int) -> None:
    """C has the groups of B, or a multiple of them where every head is a group: several readers of each state."""
    if C.dim() == len(front) + 2 and C.shape[-2] > groups and heads == groups and C.shape[-2] % groups == 0:
        _same("C", C, (*front, C.shape[-2], n), "with the batch, length and state size of B")
        return
    several = f", or with a multiple of {groups} groups, which read each state in turn" if heads == groups else ""
    _same("C", C, (*front, groups, n), f"the shape of B{several}")


def _segments(segments: Tensor | None, x: Tensor) -> None:
    if segments is None:
        return
    if not isinstance(segments, Tensor):
        raise TypeError(f"segments is {type(segments).__name__}: it must be a tensor (batch, length)")
    if segments.dtype not in _INTEGERS:
        raise TypeError(f"segments has dtype {segments.dtype}: it must be whole numbers, such as torch.int64")
    _same("segments", segments, tuple(x.shape[:2]), "one id for each token")
    if segments.device != x.device:
        raise ValueError(f"segments is on {segments.device}, but x is on {x.device}: move it there")
