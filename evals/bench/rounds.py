"""Timing several functions side by side: interleaved rounds, so that a change of the machine's load hits all alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from hf_longctx.measure.memory import Meter, returning

Runs = dict[str, Callable[[], torch.Tensor]]


def rounds(
    runs: Runs,
    repeats: int,
    *,
    clock: str = "wall",
    backward: bool = False,
    warm: bool = True,
    seconds: float = math.inf,
) -> dict[str, list[float]]:
    """Seconds of each function in each of `repeats` rounds, after one to warm up.

    Args:
        runs: name -> function that gives a tensor.
        repeats: number of rounds, at least 1.
        clock: `wall`, `cpu` (the processor's time) or `cuda` (between two events on the GPU).
        backward: whether its backward is timed with it.
        warm: whether a round that is not counted comes first.
        seconds: no further round begins after this many, but one is always counted.
    """
    taken: dict[str, list[float]] = {name: [] for name in runs}
    begin = time.perf_counter()
    for turn in range(repeats + warm):
        if turn > warm and time.perf_counter() - begin > seconds:
            break
        for name, run in runs.items():
            spent = once(run, clock, backward)
            if turn >= warm:
                taken[name].append(spent)
    return taken


def once(run: Callable[[], torch.Tensor], clock: str = "wall", backward: bool = False) -> float:
    """Seconds of one call, as `rounds` takes them."""
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


def extra_bytes(run: Callable[[], torch.Tensor], backward: bool = False) -> int:
    """The most memory during one call, over what was there before it: the result and gradients count."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with returning():
        meter = Meter(device)
        _call(run, backward)
        return meter.peak() - meter.before


def _call(run: Callable[[], torch.Tensor], backward: bool) -> None:
    with torch.set_grad_enabled(backward):
        out = run()
        if backward:
            out.backward(out.detach())


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
