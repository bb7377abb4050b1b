"""Rows of a run that answer no question, in a file of their own beside the run's rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .rows import Key, cut_torn_line, read_rows, row_key


class SideRows:
    """Rows in a file that one process writes, the first of those that share the run.

    Args:
        path: the file; its folder exists once there is a row. None keeps everything in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._whole = False
        self.rows: dict[Key, dict[str, Any]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Take in what the file holds."""
        if self._path is not None and self._path.is_file():
            self.rows |= {row_key(row): row for row in read_rows(self._path)[0]}

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row, in place of an older one of the same key.

        Args:
            row: with the keys of `row_key`.
        """
        self.rows[row_key(row)] = row
        if self._path is None:
            return
        if not self._whole and self._path.is_file():
            cut_torn_line(self._path)
        self._whole = True
        with self._path.open("ab") as file:
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
