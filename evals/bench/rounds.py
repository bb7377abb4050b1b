"""Timing several functions side by side: interleaved rounds, so that a change of the machine's load hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

Runs = dict[str, Callable[[], torch.Tensor]]


def rounds(
    runs: Runs, repeats: int, *, clock: str = "wall", backward: bool = False, fewer: tuple[str, ...] = ()
) -> dict[str, list[float]]:
    """Seconds of each function in each of `repeats` rounds, after one to warm up.

    Args:
        runs: name -> function that gives a tensor.
        repeats: number of rounds.
        clock: `wall`, `cpu` (the processor's time) or `cuda` (between two events on the GPU).
        backward: whether its backward is timed with it.
        fewer: names that are slow, and run in three rounds at most.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            if name in fewer and turn > 3:
                continue
            taken = _once(run, clock, backward)
            if turn:
                seconds[name].append(taken)
    return seconds


def _once(run: Callable[[], torch.Tensor], clock: str, backward: bool) -> float:
    if clock == "cuda":
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        _call(run, backward)
        stop.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(stop)) / 1000
    now = time.perf_counter if clock == "wall" else time.process_time
    begin = now()
    _call(run, backward)
    return now() - begin


def _call(run: Callable[[], torch.Tensor], backward: bool) -> None:
    out = run()
    if backward:
        out.backward(out.detach())


def peak_bytes(run: Callable[[], torch.Tensor], backward: bool) -> int:
    """The most bytes on the GPU during one call, over what was there before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _call(run, backward)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    import platform

    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": cuda,
    }
