"""The folder of a training run: what was asked, what was measured, and what is finished."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

SCHEMA = 1


class RunFolder:
    """`extend.json` or `distill.json` in a folder, written whole or not at all; a new one by the first `save`.

    Args:
        folder: of the run.
        settings: what decides the result; a folder with other settings is refused.
        kind: of the run, `extend` or `distill`.
        writes: whether this process writes; the others read.

    Raises:
        ValueError: a folder with another run, or with files that are none of a run's.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], *, kind: str = "extend", writes: bool = True) -> None:
        self.folder, self._writes, self._file = folder, writes, folder / f"{kind}.json"
        settings = json.loads(json.dumps(settings))
        if self._file.is_file():
            self.record: dict[str, Any] = json.loads(self._file.read_text(encoding="utf-8"))
            self._check(settings)
            return
        if writes and folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"out={str(folder)!r} is not empty and holds no run of {kind}: choose a new folder")
        self.record = {"schema": SCHEMA, "settings": settings, "finished": False}

    def save(self, **more: Any) -> None:
        """Add to the record and write it."""
        self.record.update(more)
        if not self._writes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self._file.with_suffix(".part")
        aside.write_text(json.dumps(self.record, indent=2) + "\n", encoding="utf-8")
        os.replace(aside, self._file)

    def stage(self, index: int) -> Path:
        """Where a stage keeps its checkpoints."""
        return self.folder / "stages" / str(index)

    def _check(self, settings: dict[str, Any]) -> None:
        if self.record.get("schema") != SCHEMA:
            raise ValueError(
                f"{self._file} has schema {self.record.get('schema')!r}, and this hf_longctx reads {SCHEMA}: choose a "
                "new folder"
            )
        before = self.record["settings"]
        different = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
        if different:
            key = different[0]
            raise ValueError(
                f"out={str(self.folder)!r} holds a run with {key}={before.get(key)!r}, and this one has "
                f"{settings.get(key)!r}: choose a new folder, or give what was given then"
            )
