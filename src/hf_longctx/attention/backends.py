"""Which backends there are, what each can do, and which one `auto` takes.

A backend is a module with `attend`, and `cannot(request)` if there is anything that it cannot do: the reason, and what
to use in its place. An explicit name is never replaced by another.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hf_longctx.attention import break_even, decode, dense, flash, flex, reference, tiled
from hf_longctx.attention.request import Request, one_pattern
from hf_longctx.patterns import Heads, Pattern
from hf_longctx.patterns.geometry import Columns, Segments, Spaced, unwindowed

#: Name -> the function that computes attention, with the arguments of `reference.attend`.
ATTEND: dict[str, Callable[..., Tensor]] = {
    "reference": reference.attend,
    "dense": dense.attend,
    "tiled": tiled.attend,
    "flex": flex.attend,
    "flash": flash.attend,
}
_CANNOT: dict[str, Callable[[Request], str | None]] = {
    "tiled": tiled.cannot,
    "flex": flex.cannot,
    "flash": flash.cannot,
}
#: What `backend` may be.
BACKENDS = ("auto", *ATTEND)


def cannot(backend: str, request: Request) -> str | None:
    """Why `backend` cannot do what is asked, and what to use; None if it can."""
    return _CANNOT[backend](request) if backend in _CANNOT else None


def check_backend_name(backend: str) -> None:
    """Raise ValueError unless `backend` is one that this version has."""
    if backend not in BACKENDS:
        near = difflib.get_close_matches(str(backend), BACKENDS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"backend is {backend!r}: {hint}it must be one of {', '.join(BACKENDS)}")


def check(backend: str, request: Request) -> None:
    """Raise ValueError with the reason if `backend` cannot do what is asked."""
    reason = cannot(backend, request)
    if reason is not None:
        raise ValueError(f"backend is {backend!r}, which cannot compute {request.pattern} here: {reason}, or 'auto'")


def check_backend(
    pattern: Pattern,
    backend: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int | None = None,
    value_dim: int | None = None,
    needs_grad: bool = False,
    sinks: bool = False,
) -> None:
    """Raise ValueError unless `backend` can compute `pattern` there; for callers that must know beforehand."""
    check_backend_name(backend)
    for one in pattern.entries if isinstance(pattern, Heads) else (pattern,):
        check(backend, Request(one, device, dtype, head_dim, value_dim, needs_grad, sinks))


def choose(
    pattern: Pattern | str,
    *,
    n: int,
    rows: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    needs_grad: bool = False,
    sinks: bool = False,
) -> tuple[str, str]:
    """The backend that `auto` takes, and why. It depends on the arguments and on what is installed, on nothing else.

    Args:
        pattern: the pattern, or its text form. Several names are joined by `|` where its heads differ.
        n: number of keys.
        rows: number of query rows, `n` if None.
        device: where the tensors are.
        dtype: their dtype.
        needs_grad: whether gradients are wanted.
        sinks: whether there are learned sinks.

    >>> from hf_longctx.patterns import SlidingWindow
    >>> choose(SlidingWindow(1024), n=16384)
    ('tiled', 'cost follows the visible pairs')
    >>> choose(SlidingWindow(64), n=100)
    ('dense', "short: one call under a mask costs less than the pattern's tiles")
    """
    pattern = one_pattern(pattern)
    each = pattern.entries if isinstance(pattern, Heads) else (pattern,)
    at = torch.device(device)
    requests = (Request(one, at, dtype, needs_grad=needs_grad, sinks=sinks) for one in each)
    chosen = dict.fromkeys(next(preferred(request, n, rows or n)) for request in requests)
    return "|".join(dict.fromkeys(name for name, _ in chosen)), "; ".join(reason for _, reason in chosen)


def preferred(request: Request, n: int, rows: int) -> Iterator[tuple[str, str]]:
    """The backends that can do what is asked, the best first, each with the reason."""
    cuda = request.device.type == "cuda"
    if rows <= min(decode.FEW, n - 1):
        yield "dense", f"at most {decode.FEW} query rows: one call over the visible keys"
    if cuda and flash.cannot(request) is None:
        yield "flash", "full attention or a window, which its kernel knows"
    if break_even.dense_is_faster(request.pattern, rows, n):
        yield "dense", "short: one call under a mask costs less than the pattern's tiles"
    # Not yet timed on a GPU: there, one compiled kernel beats many calls unless every block is partial.
    if cuda and not _sparse(request.pattern) and flex.cannot(request) is None:
        yield "flex", "whole blocks are empty or full, and one kernel skips them"
    reason = tiled.cannot(request)
    if reason is None:
        yield "tiled", "cost follows the visible pairs"
    yield "dense", f"a few rows at a time under a mask, because the tiled engine cannot: {reason}"


def _sparse(pattern: Pattern) -> bool:
    """Whether a pattern takes every so-many-th key, so that blocks of neighbouring keys are never full."""
    return any(isinstance(unwindowed(shape), Spaced | Segments | Columns) for shape in pattern.pieces() or ())
