"""Documents that can be counted and read one by one: files, lines of files, and several of them as one.

Text stays on the disk. A file of JSON lines is read once to note where its lines begin, 8 bytes a line.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any, Protocol

TEXT, LINES = (".txt", ".md"), (".jsonl", ".json")


class Documents(Protocol):
    """So many documents, each read when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> str: ...


class TextFile:
    """A file that is one document; none where it is empty."""

    def __init__(self, file: Path) -> None:
        self._file, self._count = file, int(file.stat().st_size > 0)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> str:
        return self._file.read_text(encoding="utf-8", errors="replace")


class Lines:
    """A file of JSON lines, a document each; lines of white space are none.

    Args:
        file: where they are.
        field: where a line has its text.
    """

    def __init__(self, file: Path, field: str) -> None:
        self._file, self._field, self._places = file, field, array("Q")
        place = 0
        with file.open("rb") as lines:
            for line in lines:
                if not line.isspace():
                    self._places.append(place)
                place += len(line)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> str:
        with self._file.open("rb") as lines:
            lines.seek(self._places[index])
            line = lines.readline()
        try:
            return text_of(json.loads(line), self._field)
        except ValueError as error:
            what = f"is no JSON ({error}): repair or remove it" if isinstance(error, json.JSONDecodeError) else error
            raise ValueError(f"data: {self._file.name}, line {self._number(index)} {what}") from None

    def _number(self, index: int) -> int:
        """Which line of the file a document is; counted only for a message."""
        with self._file.open("rb") as lines:
            ends = accumulate(len(line) for line in lines)
            return 1 + sum(1 for _ in takewhile(lambda end: end <= self._places[index], ends))


class Joined:
    """Several as one, in their order."""

    def __init__(self, parts: Sequence[Documents]) -> None:
        self._parts = [part for part in parts if len(part)]
        self._ends = list(accumulate(len(part) for part in self._parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> str:
        at = bisect_right(self._ends, index)
        return self._parts[at][index - (self._ends[at - 1] if at else 0)]


def files_in(path: Path, field: str) -> Joined:
    """The documents of a file, or of every file of text or JSON lines below a folder, by their names.

    Args:
        path: of the file or folder.
        field: where a JSON line has its text.
    """
    if path.is_file():
        files = [path]
    else:
        files = sorted(one for one in path.rglob("*") if one.suffix in (*TEXT, *LINES) and one.is_file())
    return Joined([Lines(file, field) if file.suffix in LINES else TextFile(file) for file in files])


def text_of(row: Any, field: str) -> str:
    """The text of a row.

    Raises:
        ValueError: the end of a sentence, where there is none in that field.
    """
    value = row.get(field) if isinstance(row, dict) else None
    if not isinstance(value, str):
        have = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"has no text in field {field!r}, only {have}: name it with --text-field")
    return value
