"""One token of the scan in one pass over the state, compiled by numba where it is installed: for CPUs.

In torch's own calls a step passes over the state three times (decay, write, read) and makes a dozen calls more, which
for one row cost more than the arithmetic. numba is looked for when a step comes, never imported before. Its first step
in a dtype compiles for about a second; the result is kept on disk, beside this file or in the user's cache folder. The
kernel is handed addresses, all in one piece: as arrays, its eight arguments alone would take a quarter of the time of
a step.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from functools import cache, partial
from struct import Struct
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

#: What the kernel is handed: addresses of eight arrays, then seven sizes.
_ARGUMENTS = Struct("8P7n")

#: A 0 of any width, for where there is no D. Written as a number in the kernel it would make it count in float64.
_ZERO = ctypes.c_double(0)
_NO_SKIP = ctypes.addressof(_ZERO)
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
    pointer = numba.types.CPointer
    signature = numba.void(pointer(pointer(number)), pointer(numba.intp))
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
    return ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p)(kernel.address)


def misfit(state: Tensor, *others: Tensor | None) -> str | None:
    """Why the kernel cannot take these tensors, or None."""
    if not state.is_cpu:
        return f"the tensors are on {state.device}, and the kernel is for the CPU"
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return "torch is recording what is computed, and cannot see into the kernel"
    at_work = _get_current_dispatch_mode() is not None or peek_interpreter_stack() is not None
    if at_work or forward_ad._current_level >= 0:
        return "a mode or transform of torch is at work, and cannot see into the kernel"
    if state.is_inference() and not torch.is_inference_mode_enabled():
        return "the state was made in inference mode, and must not be changed outside of it"
    for tensor in (state, *others):
        if tensor is not None and (type(tensor) not in _PLAIN or tensor.is_neg() or tensor._is_zerotensor()):
            return f"the kernel needs plain tensors, and one is a {type(tensor).__name__} that is read through torch"
    found = _found(state.dtype)
    return found if isinstance(found, str) else None


def pays(state: Tensor) -> bool:
    """Whether one thread in one pass is likely to be faster than torch's threads in three."""
    if not state.is_cpu or torch.compiler.is_compiling():  # asking for threads would break the graph
        return False
    return state.numel() <= SMALL or torch.get_num_threads() <= FEW_THREADS


def step(state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> Tensor:
    """What `ssd_step` computes. All are in the state's dtype and contiguous; the state is changed in place."""
    (batch, heads, size, n), groups, readers = state.shape, B.shape[1], C.shape[1]
    y = torch.empty_like(x) if readers <= heads else x.new_empty(batch, readers, size)
    skip, skips = (_NO_SKIP, 0) if D is None else (D.data_ptr(), D.numel() // heads)
    arguments = _ARGUMENTS.pack(
        state.data_ptr(), x.data_ptr(), dt.data_ptr(), A.data_ptr(), B.data_ptr(), C.data_ptr(), skip, y.data_ptr(),
        batch, heads, size, n, heads // groups, readers // groups, skips,
    )  # fmt: skip
    kernel: Any = _found(state.dtype)
    kernel(arguments, arguments)
    if not state.is_inference():  # what autograd has kept of it is no longer what it was
        increment_version(state)
    return y


def _kernel(arrays: Any, sizes: Any) -> None:
    """Plain loops over addresses, which numba turns into vectors.

    Both arguments are `_ARGUMENTS`, once read as addresses and once as sizes. The arrays are those of `ssd_step`, each
    without gaps; D is (heads, skips), skips 1 or size, or a single 0, skips 0. `together` heads share B and C, and
    `readers` read each state.
    """
    state, x, dt, A, B, C, D, y = (
        arrays[0], arrays[1], arrays[2], arrays[3], arrays[4], arrays[5], arrays[6], arrays[7],
    )  # fmt: skip
    batch, heads, size, n, together, readers, skips = (
        sizes[8], sizes[9], sizes[10], sizes[11], sizes[12], sizes[13], sizes[14],
    )  # fmt: skip
    groups, wide = heads // together, 1 if skips > 1 else 0
    for b in range(batch):
        for h in range(heads):
            step, group = dt[b * heads + h], b * groups + h // together
            decay, written = math.exp(step * A[h]), group * n
            for p in range(size):
                place = (b * heads + h) * size + p
                value, row, out, read = x[place], place * n, (b * heads + h) * readers * size + p, group * readers * n
                given, skip = value * step, D[h * skips + p * wide]  # no division in here: it is slow
                if skips > 0:
                    skip *= value
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
