"""High-water marks: the most memory that a stretch of work takes, on the CPU or a CUDA device."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Meter:
    """Memory taken since the meter was made.

    On CUDA the allocator's counters are read. On the CPU the resident memory of this process is, whose high-water mark
    Linux can reset; elsewhere the mark is that of the whole life of the process, so `exact` is False.

    Args:
        device: a torch device.

    Attributes:
        before: bytes held when the meter was made.
        exact: whether `peak` leaves out what came before.

    >>> meter = Meter(torch.device("cpu"))
    >>> block = torch.ones(1 << 24)  # 64 MiB of float32
    >>> meter.peak() - meter.before >= 1 << 26 or not meter.exact
    True
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self.exact, self.before = True, torch.cuda.memory_allocated(device)
            return
        self.exact = _reset()
        self.before = _status("VmRSS") or _highest()

    def peak(self) -> int:
        """The most bytes held at once, what was there before included."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            return torch.cuda.max_memory_allocated(self._device)
        return _status("VmHWM") or _highest()

    def reserved(self) -> int | None:
        """The most bytes that the CUDA allocator had taken from the device; None on the CPU."""
        return torch.cuda.max_memory_reserved(self._device) if self._device.type == "cuda" else None


@contextlib.contextmanager
def limited(device: torch.device, most: int | None) -> Iterator[None]:
    """Let allocations past `most` bytes fail, so that running out is an error here and not the end of the machine.

    Args:
        device: on CUDA its allocator is limited; on a Linux CPU the private memory of this process; elsewhere nothing.
        most: bytes; None sets no limit.
    """
    if most is None:
        yield
    elif device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        index = torch.cuda.current_device() if device.index is None else device.index  # it takes no bare "cuda"
        torch.cuda.set_per_process_memory_fraction(min(1.0, most / total), index)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, index)
    else:
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        ceiling = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (ceiling, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@contextlib.contextmanager
def returning() -> Iterator[None]:
    """Let glibc give every freed block of 64 KiB or more back at once, so that resident memory is what tensors hold.

    Otherwise blocks of up to 32 MiB come from a heap, whose gaps count as resident although nothing lies in them.
    Nothing changes where the C library is another, or on a device.
    """
    library = _glibc()
    if library is not None:
        library.mallopt(_MMAP_THRESHOLD, 1 << 16)
        library.malloc_trim(0)
    try:
        yield
    finally:
        if library is not None:
            # Where glibc's own thresholds end up once large blocks have been freed.
            library.mallopt(_MMAP_THRESHOLD, 32 << 20)
            library.mallopt(_TRIM_THRESHOLD, 64 << 20)


#: glibc's names of the parameters of mallopt.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; torch's CPU allocator has no class of its own for it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _reset() -> bool:
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _status(field: str) -> int | None:
    if not _STATUS.is_file():
        return None
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return None


def _highest() -> int:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
