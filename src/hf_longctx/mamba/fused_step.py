"""One token of the scan in one pass over the state, compiled by numba where it is installed: for CPUs.

In torch's own calls a step passes over the state three times (decay, write, read) and makes a dozen calls more, which
for one row cost more than the arithmetic. numba is looked for when a step comes, never imported before. Its first step
in a dtype compiles for about a second; the result is kept on disk, beside this file or in the user's cache folder. The
kernel is handed addresses: as arrays, its eight arguments alone would take a quarter of the time of a step.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.autograd.graph import increment_version
from torch.utils._python_dispatch import _get_current_dispatch_mode

#: The kernel runs on one thread. With two, torch's passes were slower at every size (`evals/bench/ssd.py`). With more
#: than this many they should win where a state is large, so torch takes those of more than so many numbers.
FEW_THREADS, SMALL = 4, 2**19

#: How many arguments the kernel has.
ADDRESSES, SIZES = 8, 7

_PLAIN = (Tensor, torch.nn.Parameter)
_KEPT: list[Any] = []


@cache
def _found(dtype: torch.dtype) -> Callable[..., None] | str:
    """The kernel for states of a dtype, or the reason why there is none."""
    try:
        import numba
    except Exception as error:  # a numba that does not fit numpy raises whatever it likes
        return f"numba cannot be imported ({type(error).__name__}: {error}); pip install 'hf_longctx[numba]'"
    number = {torch.float32: numba.float32, torch.float64: numba.float64}[dtype]
    signature = numba.void(*[numba.types.CPointer(number)] * ADDRESSES, *[numba.intp] * SIZES)
    # Sums may be reordered, which lets them be taken eight at a time; NaN and infinity keep their meaning.
    compiled = partial(numba.cfunc, signature, fastmath={"reassoc", "contract", "nsz"})
    try:
        try:
            kernel = compiled(cache=True)(_kernel)
        except Exception:  # no folder to keep the result in, a full disk, a file there that is damaged
            kernel = compiled()(_kernel)
    except Exception as error:
        return f"numba {numba.__version__} cannot compile the step here ({type(error).__name__}: {error})"
    _KEPT.append(kernel)  # what stands at its address lives as long as it does
    arguments = [ctypes.c_void_p] * ADDRESSES + [ctypes.c_ssize_t] * SIZES
    return ctypes.CFUNCTYPE(None, *arguments)(kernel.address)


def misfit(state: Tensor, *others: Tensor | None) -> str | None:
    """Why the kernel cannot take these tensors, or None."""
    if state.device.type != "cpu":
        return f"the tensors are on {state.device}, and the kernel is for the CPU"
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return "torch is recording what is computed, and cannot see into the kernel"
    at_work = _get_current_dispatch_mode() is not None or peek_interpreter_stack() is not None
    if at_work or forward_ad._current_level >= 0:
        return "a mode or transform of torch is at work, and cannot see into the kernel"
    if state.is_inference() and not torch.is_inference_mode_enabled():
        return "the state was made in inference mode, and must not be changed outside of it"
    for tensor in (state, *others):
        if tensor is not None and (type(tensor) not in _PLAIN or tensor.is_neg()):
            return f"the kernel needs plain tensors, and one is a {type(tensor).__name__} that is read through torch"
    found = _found(state.dtype)
    return found if isinstance(found, str) else None


def pays(state: Tensor) -> bool:
    """Whether one thread in one pass is likely to be faster than torch's threads in three."""
    if state.device.type != "cpu" or torch.compiler.is_compiling():  # asking for threads would break the graph
        return False
    return state.numel() <= SMALL or torch.get_num_threads() <= FEW_THREADS


def step(state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> Tensor:
    """What `ssd_step` computes. All are in the state's dtype; the state is changed in place."""
    (batch, heads, size, n), groups, readers = state.shape, B.shape[1], C.shape[1]
    # Held here until the kernel has returned: it sees addresses alone.
    held = [t.contiguous() for t in (x, dt, A, B, C, A if D is None else D)]
    y = x.new_empty(batch, max(readers, heads), size)
    skips = 0 if D is None else D.numel() // heads
    kernel: Any = _found(state.dtype)
    kernel(
        state.data_ptr(), *[t.data_ptr() for t in held], y.data_ptr(),
        batch, heads, size, n, heads // groups, readers // groups, skips,
    )  # fmt: skip
    if not state.is_inference():  # what autograd has kept of it is no longer what it was
        increment_version(state)
    return y


def _kernel(
    state: Any, x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, y: Any,
    batch: int, heads: int, size: int, n: int, together: int, readers: int, skips: int,
) -> None:  # fmt: skip
    """Plain loops over addresses, which numba turns into vectors.

    The first eight are the arrays of `ssd_step`, each without gaps; D is (heads, skips), skips 1 or size, 0 for none.
    `together` heads share B and C, and `readers` read each state.
    """
    groups = heads // together
    for b in range(batch):
        for h in range(heads):
            step, group = dt[b * heads + h], b * groups + h // together
            decay, written = math.exp(step * A[h]), group * n
            for p in range(size):
                place = (b * heads + h) * size + p
                value, row, out, read = x[place], place * n, (b * heads + h) * readers * size + p, group * readers * n
                given, skip = value * step, value * D[h * skips + p % skips] if skips else decay * 0
                seen = skip
                for j in range(n):
                    new = state[row + j] * decay + given * B[written + j]
                    state[row + j] = new
                    seen += new * C[read + j]
                y[out] = seen
                for r in range(1, readers):  # the row is in the fastest memory now
                    seen = skip
                    for j in range(n):
                        seen += state[row + j] * C[read + r * n + j]
                    y[out + r * size] = seen
