"""Several processes of one run, as `accelerate launch` or `torchrun` starts them.

They share a run by its folder alone: each takes a cell (a variant and a trial) by a lock on it, asks what has no row
yet, and writes rows to a file of its own (`store.RunStore`). Cells are taken rather than dealt out beforehand, because
they differ in cost: a window reads faster than full attention, and what a killed run left over is spread unevenly. A
lock ends with its process, so a killed one leaves nothing behind that a restart, with any number of processes, would
have to clean up. All that the processes say to each other is "I am done" (`wait`), at the end of each run.
"""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where launchers say how many processes they started; the ones that accelerate reads."""

_ACCELERATE = "ACCELERATE_MIXED_PRECISION"
"""What accelerate's launcher always sets."""

_PATIENCE = timedelta(days=30)
"""How long a process waits for the others: their last cell may take hours."""

_state: Any = None


@dataclass(frozen=True)
class Place:
    """Which process this is.

    Attributes:
        index: from 0; 0 is the one that prints, writes pages and measures costs.
        count: how many share the run.
    """

    index: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Is this the first process, or the only one?"""
        return self.index == 0


def launched() -> bool:
    """Did a launcher start several processes like this one?

    >>> launched()
    False
    """
    return any(int(os.environ.get(name) or 1) > 1 for name in _SIZES)


def sharing() -> str | None:
    """How many processes share the run, as a sentence; None where no launcher was at work.

    `accelerate launch --cpu --num_processes 2` starts one process, since with that flag it starts more by MPI alone:
    without this nobody would know.
    """
    if here().count > 1:
        return f"{here().count} processes share this run"
    if _ACCELERATE in os.environ:
        import torch

        if torch.cuda.is_available():
            return "1 process runs this"
        return (
            "1 process runs this: accelerate launch --cpu starts more by MPI alone; "
            "torchrun --nproc-per-node 2 -m hf_longctx ... --device cpu starts two"
        )
    return None


def join(device: str | None = None) -> Place:
    """Share runs with the other processes that a launcher started; without a launcher nothing changes.

    Every process has to call this, and then measure the same. It is never called for you in Python: a training script
    may measure in one of its processes only.

    Args:
        device: what will run the model; `cpu` keeps processes off the GPUs. Else each has the GPU of its local rank.

    Returns:
        Which process this is.
    """
    global _state
    if _state is None and launched():
        import torch
        from accelerate import PartialState

        on_cpu = str(device or "").startswith("cpu") or not torch.cuda.is_available()
        # gloo on GPUs too: nothing but waiting is ever sent, and it should not keep a GPU busy.
        _state = PartialState(cpu=on_cpu, backend="gloo", timeout=_PATIENCE)
        atexit.register(_state.destroy_process_group)
    return here()


def here() -> Place:
    """Which process this is among those that have joined.

    >>> here()
    Place(index=0, count=1)
    """
    return Place() if _state is None else Place(_state.process_index, _state.num_processes)


def wait() -> None:
    """Go on when all processes that have joined are here too.

    Raises:
        ChildProcessError: one of them has ended.
    """
    if _state is None:
        return
    try:
        _state.wait_for_everyone()
    except RuntimeError as error:
        raise ChildProcessError(
            "another process of this run has ended before its time: the same command, with any number of processes, "
            "goes on from there"
        ) from error
