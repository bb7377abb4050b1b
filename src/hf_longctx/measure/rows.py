"""The rows of a run as files: what tells them apart, where they are, and how they are read whole."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

Row = TypeVar("Row", bound=Mapping[str, Any])

Key = tuple[str, int, int, float | None, str]
"""What makes a row unique: variant, trial, length, depth, kind."""


def row_key(row: Mapping[str, Any]) -> Key:
    """The key of a row.

    Args:
        row: as in `rows.jsonl`.

    Returns:
        (variant, trial, length, depth, kind).
    """
    return row["variant"], row["trial"], row["length"], row["depth"], row["kind"]


def later(known: Row | None, row: Row) -> Row:
    """Which of two rows of one key counts: the one that was measured, or else the one read last.

    Files of several processes say nothing about which row came first, and only what has no figures is asked again.

    Args:
        known: the row read before, if any.
        row: read after it.

    >>> later({"outcome": "ok"}, {"outcome": "oom"}), later({"outcome": "error"}, {"outcome": "oom"})
    ({'outcome': 'ok'}, {'outcome': 'oom'})
    """
    return known if known is not None and known.get("outcome") == "ok" != row.get("outcome") else row


def row_files(out: Path, name: str = "rows") -> list[Path]:
    """The files that hold a run's rows, those of every process that has ever worked on it.

    Args:
        out: the run's folder.
        name: `rows` or `cost`.

    Returns:
        Paths, sorted; none if there is no such run.
    """
    own = re.compile(rf"{re.escape(name)}(\.\d+-of-\d+)?\.jsonl")
    return sorted(path for path in out.glob(f"{name}*.jsonl") if own.fullmatch(path.name))


def cut_torn_line(path: Path) -> None:
    """Cut off a last line that a kill has torn; only the writer of the file may."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)


def read_rows(path: Path, start: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The rows of a file from a byte on, and the byte after its last whole line."""
    with path.open("rb") as file:
        file.seek(start)
        data = file.read()
    stop = data.rfind(b"\n") + 1
    rows = []
    for number, line in enumerate(data[:stop].splitlines(), start=1):
        try:
            row = json.loads(line)
            row_key(row)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"line {number} of {path} is no row of a run: choose another --out") from error
        rows.append(row)
    return rows, start + stop


def rows_of(folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a run to be told of, each key once, from ``NAME.jsonl`` and the files of other processes beside it.

    Args:
        folder: the run's.
        name: `rows` or `cost`.

    Raises:
        ValueError: a broken line before the last, or a row that lacks a part of its key.
    """
    found: dict[Any, dict[str, Any]] = {}
    for path in row_files(folder, name):
        for row in _lines(path):
            try:
                key = (*row_key(row), row.get("task"))
            except (KeyError, TypeError) as error:
                raise ValueError(f"{path}: a row lacks {error}; restore the file or run again") from error
            found[key] = later(found.get(key), row)
    return list(found.values())


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            # A killed run may leave its last line torn: whole lines end in a newline, so only that one may be broken.
            if number == len(lines):
                logger.info("dropped the torn last line of %s", path)
                continue
            raise ValueError(
                f"{path}, line {number}: not JSON ({error.msg}); restore the file or run again"
            ) from error
    return rows
