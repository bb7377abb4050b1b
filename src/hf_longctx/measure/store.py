"""A run's folder: rows as they happen, settings that must agree, a summary that is always whole.

`rows.jsonl` grows by one full line a probe, so that a run killed at any moment loses no row but the one being written.
`run.json` and `summary.json` are replaced as a whole, never half written.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from filelock import FileLock

SCHEMA = 1
"""Version of the files in a run's folder."""

_RUNS = {"run.json", "cost.json"}
"""What a folder of runs holds: a recall run, a cost run, or both."""

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


def write_json(path: Path, data: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part.

    Args:
        path: the file; its folder exists.
        data: what `json` can write.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(data, file, indent=1, ensure_ascii=False)
            file.write("\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


class RunStore:
    """The rows and facts of one run, in a folder or, without one, in memory.

    Args:
        out: the folder; made if missing. None keeps everything in memory.
        settings: whatever changes rows, as JSON types. A folder written with other settings is refused.
        facts: what else `run.json` says, written once: command, versions, hardware, time.
        name: what the files are called; `rows` gives `rows.jsonl` and `run.json`, `cost` gives `cost.jsonl` and
            `cost.json`, so that one folder holds a recall run and a cost run.

    Raises:
        ValueError: if the folder holds a run with other settings, another schema, something else, or a damaged file,
            or another process is writing to it.
    """

    def __init__(
        self, out: Path | None, settings: Mapping[str, Any], facts: Mapping[str, Any], *, name: str = "rows"
    ) -> None:
        self.out = out
        self._rows_name, self._run_name = f"{name}.jsonl", "run.json" if name == "rows" else f"{name}.json"
        self.rows: dict[Key, dict[str, Any]] = {}
        self.run: dict[str, Any] = {"schema": SCHEMA, "settings": dict(settings), **facts, "variants": {}}
        self._file: int | None = None
        self._lock: FileLock | None = None
        if out is None:
            return
        if out.exists() and not out.is_dir():
            raise ValueError(f"out={str(out)!r} is a file: choose a folder for the run")
        known = (out / self._run_name).is_file()
        others = [] if known or not out.exists() else sorted(p.name for p in out.iterdir() if p.name[0] != ".")
        if self._rows_name in others:
            raise ValueError(f"out={str(out)!r} holds {self._rows_name} but no {self._run_name}: choose another --out")
        if others and not _RUNS & set(others):
            raise ValueError(
                f"out={str(out)!r} holds {', '.join(others[:3])}{' and more' if len(others) > 3 else ''} but no "
                f"{self._run_name}: choose a new or empty folder"
            )
        out.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(out)
        try:
            if known:
                self.run = _agreed(out, _read_run(out / self._run_name), settings)
            else:
                write_json(out / self._run_name, self.run)
            for row in _read_rows(out / self._rows_name):
                self.rows[row_key(row)] = row
        except BaseException:
            self._lock.release()
            raise

    def add_variant(self, name: str, facts: Mapping[str, Any]) -> None:
        """Note what a variant is, before its first row.

        Args:
            name: the variant's name.
            facts: at least its `definition`, as JSON types.

        Raises:
            ValueError: if the run already knows that name with another definition.
        """
        facts = json.loads(json.dumps(facts))
        known = self.run["variants"].get(name)
        if known is not None and known["definition"] != facts["definition"]:
            raise ValueError(
                f"variant {name!r} is {facts['definition']} here and {known['definition']} in the run in "
                f"{str(self.out)!r}: give it another name or choose another --out"
            )
        if known != facts:
            self.run["variants"][name] = facts
            if self.out is not None:
                write_json(self.out / self._run_name, self.run)

    def note_command(self, command: str, variants: Collection[str]) -> None:
        """Keep how the run was started: one command if it names all variants so far, else one a line.

        Args:
            command: how this process was started.
            variants: the names of its variants.
        """
        known = self.run.get("command", "").splitlines()
        commands = [command] if set(variants) >= set(self.run["variants"]) else [*known, command]
        if (told := "\n".join(dict.fromkeys(commands))) != self.run.get("command"):
            self.run["command"] = told
            if self.out is not None:
                write_json(self.out / self._run_name, self.run)

    def add_row(self, row: dict[str, Any]) -> None:
        """Keep a row; it is on its way to disk, as one full line, when this returns.

        Args:
            row: as in `rows.jsonl`.
        """
        self.rows[row_key(row)] = row
        if self.out is None:
            return
        if self._file is None:
            self._file = os.open(self.out / self._rows_name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(self._file, (json.dumps(row, ensure_ascii=False) + "\n").encode())

    def close(self) -> None:
        """Let go of the folder: another process may go on with the run."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None


class SideRows:
    """Rows of a run that answer no question, in a file of their own; whoever writes holds the run's folder.

    Args:
        path: the file; its folder exists once there is a row. None keeps everything in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.rows: dict[Key, dict[str, Any]] = {row_key(row): row for row in (_read_rows(path) if path else ())}

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row, in place of an older one of the same key.

        Args:
            row: with the keys of `row_key`.
        """
        self.rows[row_key(row)] = row
        if self._path is not None:
            with self._path.open("ab") as file:
                file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def _locked(out: Path) -> FileLock:
    """The folder for this process alone: two runs at once would ask everything twice. A killed process lets go."""
    from filelock import FileLock, Timeout

    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"out={str(out)!r} is being written by another process: wait for it to end, or choose another --out"
        ) from None
    return lock


def _read_run(path: Path) -> dict[str, Any]:
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(run["settings"], dict) and isinstance(run["variants"], dict):
            return dict(run)
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{path} is damaged: choose another --out, or restore the file")


def _agreed(out: Path, run: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    if run.get("schema") != SCHEMA:
        raise ValueError(
            f"out={str(out)!r} was written with schema {run.get('schema')}, this version writes {SCHEMA}: "
            "choose another --out"
        )
    now = json.loads(json.dumps(dict(settings)))
    then = run["settings"]
    changed = [key for key in sorted({*now, *then}) if now.get(key) != then.get(key)]
    if changed:
        differences = ", ".join(f"{key} was {then.get(key)!r} and is now {now.get(key)!r}" for key in changed)
        raise ValueError(
            f"out={str(out)!r} holds a run with other settings: {differences}; choose another --out or the same "
            "settings"
        )
    return run


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a file; a last line torn by a kill is cut off."""
    if not path.is_file():
        return []
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
    rows = []
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        try:
            row = json.loads(line)
            row_key(row)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"line {number} of {path} is no row of a run: choose another --out") from error
        rows.append(row)
    return rows
