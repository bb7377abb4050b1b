"""The public scan of Mamba-2, over a sequence and for one token, and the choice of how it is computed."""

from __future__ import annotations

import difflib

import torch
from torch import Tensor

from hf_longctx.compiling import eager
from hf_longctx.mamba import checks, chunks, fused_step, kernels

#: What `backend` may be, of the scan and of one step.
BACKENDS = ("auto", "torch", "mamba_ssm")
STEP_BACKENDS = (*BACKENDS, "numba")

#: Tokens of a chunk by default: the fastest in `evals/bench/ssd.py` for heads of 64 and states of 64 and 128.
CHUNK = 64


@eager
def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    chunk: int | None = None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    segments: Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """State-space duality, the scan of Mamba-2 (Dao and Gu 2024, arXiv 2405.21060), chunk by chunk. Differentiable.

    For each head: state <- exp(dt A) state + dt x B^T, then y = state C + D x. Time is linear in l, and extra memory,
    beside the result, does not depend on it. Splitting a sequence anywhere and handing the final state on gives the
    same result. A token with dt 0 leaves the state as it was: set dt to 0 at padding, on any side. Its own y means
    nothing.

    Args:
        x: (b, l, h, p) values, any floating dtype.
        dt: (b, l, h) step sizes after softplus, at least 0, floating; best float32.
        A: (h,) decay rates, at most 0, floating; best float32.
        B: (b, l, g, n) in x's dtype, how tokens write; g divides h, and head i belongs to group i // (h / g).
        C: (b, l, g, n) in x's dtype, how tokens read. Where h = g it may have a multiple of g groups, (b, l, c, n):
            each state is then read c / g times, as the query heads of a group read one key-value head.
        D: (h,) or (h, p) skip weights.
        chunk: tokens handled at once; it changes speed, not the result. 64 if None.
        initial_state: (b, h, p, n) state before the first token, 0 if None. It belongs to the first token's document.
        return_final_state: also return the state after the last token.
        segments: (b, l) integer ids of packed documents: each maximal run of equal ids is a document, and starts from
            an empty state.
        backend: `auto`, `torch`, or `mamba_ssm` (its CUDA kernels). `auto` takes the kernels for tensors on CUDA where
            they are installed. A name given is never replaced by another.

    Returns:
        y (b, l, h, p) in x's dtype, (b, l, c, p) where C has more groups than B, or y and the state (b, h, p, n),
        float32 (float64 for float64).

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: shapes do not fit, dt is negative, A is positive, or the backend cannot do what is asked.

    >>> x, dt, A = torch.randn(1, 100, 4, 8), torch.rand(1, 100, 4), -torch.rand(4)
    >>> B, C = torch.randn(2, 1, 100, 2, 16)
    >>> y, state = ssd(x, dt, A, B, C, return_final_state=True)
    >>> y.shape, state.shape
    (torch.Size([1, 100, 4, 8]), torch.Size([1, 4, 8, 16]))
    >>> first, state = ssd(x[:, :30], dt[:, :30], A, B[:, :30], C[:, :30], return_final_state=True)
    >>> rest = ssd(x[:, 30:], dt[:, 30:], A, B[:, 30:], C[:, 30:], initial_state=state)
    >>> torch.allclose(torch.cat([first, rest], dim=1), y, atol=1e-4)
    True
    """
    checks.ssd(x, dt, A, B, C, D, chunk, initial_state, segments)
    check_backend(backend)
    documents = None if segments is None else _documents(segments)
    unfit = kernels.misfit(x, B, chunk) if backend == "mamba_ssm" or (backend == "auto" and x.is_cuda) else "torch"
    if backend == "mamba_ssm":
        _refuse(backend, unfit)
    if unfit is None:
        y, state = kernels.scan(x, dt, A, B, C, D, initial_state, documents, chunk)
    else:
        checks.signs(dt, A)
        y, state = chunks.scan(x, dt, A, B, C, D, initial_state, documents, CHUNK if chunk is None else chunk)
    return (y, state) if return_final_state else y


def ssd_step(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """One token of `ssd`: `state` is carried over it in place. For decoding, so without gradients.

    Args:
        state: (b, h, p, n), float32 or float64, contiguous; what `ssd` returned. Changed in place.
        x: (b, h, p), any floating dtype.
        dt: (b, h) step sizes after softplus; 0 leaves a row's state as it was.
        A: (h,) decay rates, at most 0.
        B: (b, g, n).
        C: (b, g, n), or (b, c, n) as for `ssd`.
        D: (h,) or (h, p) skip weights.
        backend: `auto`, `torch`, `mamba_ssm` (its CUDA kernel) or `numba` (one pass over the state on the CPU,
            `pip install "hf_longctx[numba]"`). `auto` takes the kernels where they are installed. A name given is
            never replaced by another.

    Returns:
        y (b, h, p) in x's dtype, or (b, c, p).

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: shapes do not fit, the state is not contiguous, gradients are wanted, or the backend cannot do what
            is asked.

    >>> x, dt, A = torch.randn(1, 9, 4, 8), torch.rand(1, 9, 4), -torch.rand(4)
    >>> B, C = torch.randn(2, 1, 9, 2, 16)
    >>> _, state = ssd(x[:, :8], dt[:, :8], A, B[:, :8], C[:, :8], return_final_state=True)
    >>> y = ssd_step(state, x[:, 8], dt[:, 8], A, B[:, 8], C[:, 8])
    >>> torch.allclose(y, ssd(x, dt, A, B, C)[:, 8], atol=1e-4)
    True
    """
    usual = checks.step(state, x, dt, A, B, C, D)
    if backend not in STEP_BACKENDS:
        check_backend(backend, STEP_BACKENDS)
    if backend == "mamba_ssm" or (backend == "auto" and state.is_cuda):
        unfit = kernels.misfit(x, B) if state.dtype == torch.float32 else "the kernel needs a float32 state"
        if unfit is None:
            return kernels.step(state, x, dt, A, B, C, D)
        if backend == "mamba_ssm":
            _refuse(backend, unfit)
    run = _step
    if backend == "numba" or (backend == "auto" and fused_step.pays(state)):
        unfit = fused_step.misfit(state, x, dt, A, B, C, D)
        if unfit is None:
            if usual:  # nothing to convert, nothing that autocast could touch
                return fused_step.step(state, x, dt, A, B, C, D)
            run = _fused
        elif backend == "numba":
            _refuse(backend, unfit)
    out, exact = x.dtype, state.dtype
    if not (exact is out is B.dtype is C.dtype is dt.dtype is A.dtype) or (D is not None and D.dtype is not exact):
        x, dt, A, B, C = (t.to(exact) for t in (x, dt, A, B, C))
        D = None if D is None else D.to(exact)
    if torch.is_autocast_enabled(x.device.type):
        with chunks.full_precision(x):
            y = run(state, x, dt, A, B, C, D)
    else:  # a context costs as much as a few of the calls below
        y = run(state, x, dt, A, B, C, D)
    return y if out is exact else y.to(out)


def _step(state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> Tensor:
    """`ssd_step` in the state's dtype. For one row what counts is how few calls of torch there are."""
    (batch, heads, size, n), groups, readers = state.shape, B.shape[1], C.shape[1]
    # A group's heads are rows of one matrix, so B and C serve them all without being repeated.
    rows = state.view(batch * groups, heads // groups * size, n)
    if groups > 1:
        B, C = B.reshape(batch * groups, 1, n), C.reshape(batch * groups, readers // groups, n)
    state.mul_((dt * A).exp_().view(batch, heads, 1, 1))
    rows.addcmul_((x * dt.unsqueeze(-1)).reshape(*rows.shape[:2], 1), B)
    # A row times a matrix: torch's batched product is several times slower for a matrix times a column.
    y = torch.bmm(C, rows.mT)
    if readers == groups:
        y = y.view(batch, heads, size)
        return y if D is None else y.addcmul_(x, D.view(heads, -1))
    y = y.view(batch, heads, readers // groups, size)
    return (y if D is None else y.add_((x * D.view(heads, -1)).unsqueeze(2))).flatten(1, 2)


def _fused(state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> Tensor:
    """`fused_step.step`, which reads memory as it lies."""
    x, dt, A, B, C = (t.contiguous() for t in (x, dt, A, B, C))
    return fused_step.step(state, x, dt, A, B, C, None if D is None else D.contiguous())


def check_backend(backend: str, known: tuple[str, ...] = BACKENDS) -> None:
    """Raise ValueError unless `backend` is a name that this version knows."""
    if backend not in known:
        near = difflib.get_close_matches(str(backend), known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"backend is {backend!r}: {hint}it must be one of {', '.join(known)}")


def _refuse(backend: str, unfit: str | None) -> None:
    """Raise ValueError if the backend that was asked for by name cannot do it."""
    if unfit is not None:
        raise ValueError(f"backend is {backend!r}, which cannot run here: {unfit}. Use backend='auto'")


def _documents(segments: Tensor) -> Tensor:
    """Number the maximal runs of equal ids: an id that comes back is another document."""
    new = torch.zeros_like(segments, dtype=torch.int32)
    new[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return new.cumsum(1, dtype=torch.int32)
