"""What every training run does, whatever it teaches: share the batch, open the folder, go from stage to stage."""

from __future__ import annotations

import gc
import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoints import KEPT, bytes_of, check_disk, drop_torn, whole_checkpoints
from .checks import whole
from .run_folder import RunFolder

if TYPE_CHECKING:
    from .trainer import ExtendTrainer


#: Trains a stage (its index, itself) from a checkpoint or from nothing, or loads what a finished one came to; its log.
Train = Callable[[int, Any, Path | None, bool], list[dict[str, Any]]]


def processes_for(on_cpu: bool) -> Any:
    """The processes that share a run, as accelerate knows them."""
    from accelerate import PartialState

    return PartialState(cpu=True) if on_cpu else PartialState()


def accumulation(batch: int, micro_batch: int, processes: int) -> int:
    """How many times each process computes before an optimizer step.

    Raises:
        ValueError: a number below 1, or a batch that the processes cannot share evenly.

    >>> accumulation(8, 2, 2)
    2
    """
    whole("batch", batch)
    whole("micro_batch", micro_batch)
    at_once = micro_batch * processes
    if batch % at_once:
        raise ValueError(
            f"batch is {batch}, which {processes} process(es) with micro_batch={micro_batch} cannot share evenly: "
            f"choose a multiple of {at_once}"
        )
    return batch // at_once


def open_run(folder: Path, settings: dict[str, Any], *, kind: str, processes: Any) -> RunFolder:
    """The run's folder, of which nothing is written yet. All processes read it before one of them writes.

    Raises:
        ValueError: as `RunFolder`.
    """
    run = RunFolder(folder, settings, kind=kind, writes=processes.is_main_process)
    processes.wait_for_everyone()
    return run


def origin(*, source: str, data: str, command: str | None) -> dict[str, Any]:
    """What a record says of where it is from."""
    packages = ("hf_longctx", "torch", "transformers")
    versions = {one: importlib.metadata.version(one) for one in packages}
    return {"source": source, "data": data, "command": command, "versions": versions}


def reached(run: RunFolder, stages: Sequence[Any]) -> tuple[int, int, Path | None]:
    """How far a run is: the stage that it goes on with, its steps that are done, and its last whole checkpoint."""
    for index in reversed(range(len(stages))):
        if found := whole_checkpoints(run.stage(index)):
            return index, *found[-1]
    return 0, 0, None


def go_through(
    run: RunFolder, stages: Sequence[Any], train: Train, *, model: Any, checkpoint_bytes: int, processes: Any
) -> None:
    """Train every stage that is not finished, from the last whole checkpoint; the record gets their logs.

    Args:
        run: the folder.
        stages: dataclasses with `steps`.
        train: trains one.
        model: what will be saved; its size counts.
        checkpoint_bytes: of one checkpoint.
        processes: from `processes_for`.

    Raises:
        ValueError: the disk is too small.
    """
    if processes.is_main_process:
        needed = (KEPT + 1) * checkpoint_bytes + bytes_of(model.parameters())
        check_disk(run.folder, needed, "its checkpoints and the result")
        for index in range(len(stages)):
            drop_torn(run.stage(index))
    processes.wait_for_everyone()
    at, step, checkpoint = reached(run, stages)
    logs = dict(enumerate(run.record.get("stages", ())))
    for index in range(at, len(stages)):
        if index > at:
            step, checkpoint = 0, None
        log = train(index, stages[index], checkpoint, step >= stages[index].steps)
        gc.collect()  # a trainer is in cycles
        logs[index] = asdict(stages[index]) | {"log": log}
        run.save(stages=[logs[one] for one in sorted(logs)])


def carry_out(trainer: ExtendTrainer, checkpoint: Path | None, *, finished: bool) -> list[dict[str, Any]]:
    """Train, or load what a finished stage came to, and let go of the optimizer; the log of its steps."""
    if finished and checkpoint is not None:
        trainer.load_weights(checkpoint)
        log = trainer.log_of(checkpoint)
    else:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        log = [row for row in trainer.state.log_history if "loss" in row]
        trainer.save_state()
    trainer.accelerator.free_memory()
    return log
