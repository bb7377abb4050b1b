"""Data sets that the package `datasets` reads: of the hub, in parquet files, or saved by `save_to_disk`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .documents import text_of

#: A stream is shuffled within so many documents.
_SHUFFLED = 1000


@dataclass(frozen=True)
class Rows:
    """Rows that are on the disk and can be counted.

    Attributes:
        rows: of `datasets`.
        field: where a row has its text.
        name: for errors.
    """

    rows: Any
    field: str
    name: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> str:
        return _text(self.rows[index], self.field, self.name)


@dataclass(frozen=True)
class Stream:
    """Rows that come one after the other, in the order of a seed or, without one, their own.

    Attributes:
        rows: of `datasets`.
        field: where a row has its text.
        name: for errors.
    """

    rows: Any
    field: str
    name: str

    def texts(self, seed: int | None = None) -> Iterator[str]:
        """The text of every row. A seed shuffles shards, and rows within a buffer."""
        rows = self.rows if seed is None else self.rows.shuffle(seed=seed % 2**32, buffer_size=_SHUFFLED)
        return (_text(row, self.field, self.name) for row in rows)


def is_data_set(path: Path) -> bool:
    """Whether a file or folder is one that `datasets` reads: parquet, or what `save_to_disk` wrote."""
    return path.suffix == ".parquet" if path.is_file() else _is_saved(path) or any(path.rglob("*.parquet"))


def open_data_set(name: str, field: str, split: str, *, known: str) -> tuple[Rows | Stream, str]:
    """A data set by name.

    Args:
        name: of a data set of the hub, a folder or a parquet file; `NAME:CONFIG` where it has several configurations.
        field: where a row has its text.
        split: of the data set.
        known: what else may be given, for errors.

    Returns:
        Its rows, and a line that says what they are.

    Raises:
        ModuleNotFoundError: without datasets.
        ValueError: no such data set, configuration or split.
    """
    try:
        import datasets
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"data={name!r} is no folder or file of text here, and a data set needs the package datasets: "
            'pip install "hf_longctx[train]"'
        ) from None
    place, _, config = (name, "", "") if Path(name).exists() else name.partition(":")
    path = Path(place)
    label = f"data set {path.name if path.exists() else place}{f' ({config})' if config else ''}, split {split}"
    try:
        if _is_saved(path):
            return Rows(_saved(datasets.load_from_disk, place, config, split), field, name), label
        if path.is_file():
            stream = datasets.load_dataset("parquet", data_files=place, split=split, streaming=True)
        else:
            stream = datasets.load_dataset(place, config or None, split=split, streaming=True)
        return Stream(stream, field, name), label
    except (OSError, ValueError) as error:
        raise ValueError(
            f"data={name!r} cannot be opened: it must be {known}, or a data set's name, with its configuration as "
            f"NAME:CONFIG where it has several ({' '.join(str(error).split())[:400]})"
        ) from error


def _is_saved(path: Path) -> bool:
    return any((path / file).is_file() for file in ("state.json", "dataset_dict.json"))


def _saved(load: Callable[[str], Any], place: str, config: str, split: str) -> Any:
    """What `save_to_disk` wrote: the split of several, or the only one, whatever it is called."""
    if config:
        raise ValueError("what save_to_disk wrote has no configurations: leave it out")
    found = load(place)
    if not isinstance(found, dict):
        return found
    if split not in found:
        raise ValueError(f"it has no split {split!r}, only {', '.join(found)}: choose one with --split")
    return found[split]


def _text(row: Any, field: str, name: str) -> str:
    try:
        return text_of(row, field)
    except ValueError as error:
        raise ValueError(f"data: a row of {name} {error}") from None
