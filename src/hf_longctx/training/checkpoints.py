"""Checkpoints that a killed run goes on from: only whole ones count, and there must be room for them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: Written into a checkpoint when all of it is there.
WHOLE = "whole"
#: How many whole checkpoints are kept: while a new one is written, an older one is still there.
KEPT = 2


def whole_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints of a stage that were written to the end, as (step, folder), ascending."""
    return sorted((step, path) for step, path in _checkpoints(folder) if (path / WHOLE).is_file())


def drop_torn(folder: Path) -> None:
    """Remove the checkpoints that a killed run left unfinished."""
    for _, path in list(_checkpoints(folder)):
        if not (path / WHOLE).is_file():
            shutil.rmtree(path)


def _checkpoints(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.glob("checkpoint-*"):
        number = path.name.partition("-")[2]
        if path.is_dir() and number.isdigit():
            yield int(number), path


def bytes_of(parameters: Iterable[torch.Tensor]) -> int:
    """What they take on a disk."""
    return sum(p.numel() * p.element_size() for p in parameters)


def check_disk(folder: Path, needed: int, what: str) -> None:
    """Refuse to write what does not fit.

    Args:
        folder: where to.
        needed: bytes.
        what: what they are for.

    Raises:
        ValueError: fewer bytes are free.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ValueError(
            f"{folder} has {free / 2**30:.2f} GiB free, and {what} needs {needed / 2**30:.2f} GiB: free some, or "
            "choose another folder with --out; a run that was stopped goes on from its last checkpoint"
        )
