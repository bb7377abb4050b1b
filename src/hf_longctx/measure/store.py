"""A run's folder: rows as they happen, settings that must agree, a summary that is always whole.

`rows.jsonl` grows by one full line a probe, so that a run killed at any moment loses no row but the one being written.
Each of several processes has a file of its own (`rows.1-of-2.jsonl`); whoever reads takes all of them. `run.json` and
`summary.json` are replaced as a whole, never half written.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .processes import here, wait
from .rows import Key, cut_torn_line, later, read_rows, row_files, row_key

if TYPE_CHECKING:
    from filelock import FileLock

SCHEMA = 1
"""Version of the files in a run's folder."""

_RUNS = {"run.json", "cost.json"}
"""What a folder of runs holds: a recall run, a cost run, or both."""

_LOCKS = ".locks"
"""Folder of lock files: one for each file of rows, one for each cell, `run` for what all processes write."""

_NO_FIGURE = {"memory"}
"""What cost runs used to keep among their settings, and changes no figure: older folders go on whatever it was."""


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
            or another process is writing the rows that this one would.
    """

    def __init__(
        self, out: Path | None, settings: Mapping[str, Any], facts: Mapping[str, Any], *, name: str = "rows"
    ) -> None:
        place = here()
        part = f".{place.index + 1}-of-{place.count}" if place.count > 1 else ""
        self.out, self._name = out, name
        self._rows_name, self._run_name = f"{name}{part}.jsonl", "run.json" if name == "rows" else f"{name}.json"
        self.rows: dict[Key, dict[str, Any]] = {}
        self.run: dict[str, Any] = {"schema": SCHEMA, "settings": dict(settings), **facts, "variants": {}}
        self._file: int | None = None
        self._lock: FileLock | None = None
        self._read: dict[str, int] = {}
        if out is None:
            return
        _check_folder(out, name, self._run_name)
        (out / _LOCKS).mkdir(parents=True, exist_ok=True)
        # Not at once: a process that mends a file of another's holds it for a moment.
        self._lock = self._take(self._rows_name, patience=0.3)
        if self._lock is None:
            raise ValueError(
                f"out={str(out)!r} is being written by another process: wait for it to end, or choose another --out"
            )
        try:
            with self._alone():
                if (out / self._run_name).is_file():
                    self.run = _agreed(out, _read_run(out / self._run_name), settings)
                else:
                    write_json(out / self._run_name, self.run)
            self._mend()
            self.refresh()
        except BaseException:
            self._lock.release()
            raise

    def refresh(self) -> None:
        """Take in what other processes have written since."""
        for path in row_files(self.out, self._name) if self.out is not None else ():
            start = self._read.get(path.name, 0)
            rows, stop = read_rows(path, start)
            self._read[path.name] = stop
            for row in rows:
                self.rows[row_key(row)] = later(self.rows.get(row_key(row)), row)

    @contextlib.contextmanager
    def claim(self, *cell: object) -> Iterator[bool]:
        """Keep a cell from other processes for as long as the context lasts.

        Args:
            *cell: what will be asked, such as a variant and a trial.

        Yields:
            True, and all rows of the cell that there are, are known; or False: another process is at it.
        """
        lock = None if self.out is None else self._take("-".join(map(str, ("cell", *cell))))
        if lock is None and self.out is not None:
            yield False
            return
        try:
            self.refresh()
            yield True
        finally:
            if lock is not None:
                lock.release()

    def wait(self) -> None:
        """Go on when all processes that share the run's folder are here too; what they found is known from then on."""
        if self.out is not None:
            wait()
            self.refresh()

    def add_variant(self, name: str, facts: Mapping[str, Any]) -> None:
        """Note what a variant is, before its first row.

        Args:
            name: the variant's name.
            facts: at least its `definition`, as JSON types.

        Raises:
            ValueError: if the run already knows that name with another definition.
        """
        facts = json.loads(json.dumps(facts))
        with self._changed() as run:
            known = run["variants"].get(name)
            if known is not None and known["definition"] != facts["definition"]:
                raise ValueError(
                    f"variant {name!r} is {facts['definition']} here and {known['definition']} in the run in "
                    f"{str(self.out)!r}: give it another name or choose another --out"
                )
            run["variants"][name] = facts

    def note_command(self, command: str, variants: Collection[str]) -> None:
        """Keep how the run was started: one command if it names all variants so far, else one a line.

        Args:
            command: how this process was started.
            variants: the names of its variants.
        """
        with self._changed() as run:
            known = run.get("command", "").splitlines()
            commands = [command] if set(variants) >= set(run["variants"]) else [*known, command]
            run["command"] = "\n".join(dict.fromkeys(commands))

    def note(self, name: str, value: Any) -> None:
        """Keep a fact of the run that may differ when it is started again: the last one stays.

        Args:
            name: of the fact.
            value: as JSON types.
        """
        with self._changed() as run:
            run[name] = value

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
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        os.write(self._file, line)
        self._read[self._rows_name] = self._read.get(self._rows_name, 0) + len(line)

    def write_summary(self, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Sum up all rows, those of other processes too, and replace `summary.json`.

        Args:
            make: gives the summary of `rows`, which is up to date when it is called.

        Returns:
            What it gave.
        """
        if self.out is None:
            return make()
        # Alone from reading to writing: the last process to finish has read everyone's rows.
        with self._alone():
            self.refresh()
            summary = make()
            write_json(self.out / "summary.json", summary)
        return summary

    def close(self) -> None:
        """Let go of the rows' file: another process may go on with it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _mend(self) -> None:
        """Cut off what a kill has torn, in this process' file and in those that nobody writes any more."""
        assert self.out is not None
        for path in row_files(self.out, self._name):
            lock = None if path.name == self._rows_name else self._take(path.name)
            if path.name == self._rows_name or lock is not None:
                cut_torn_line(path)
            if lock is not None:
                lock.release()

    def _take(self, name: str, *, patience: float = 0) -> FileLock | None:
        """A lock, or None if another process holds it. The system lets go of it when its process ends, however."""
        from filelock import FileLock, Timeout

        assert self.out is not None
        lock = FileLock(self.out / _LOCKS / name)
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            return None
        return lock

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process reads and writes the files that all of them write."""
        from filelock import FileLock

        assert self.out is not None
        with FileLock(self.out / _LOCKS / "run"):
            yield

    @contextlib.contextmanager
    def _changed(self) -> Iterator[dict[str, Any]]:
        """The facts of the run, to be changed; written where they were."""
        if self.out is None:
            yield self.run
            return
        path = self.out / self._run_name
        with self._alone():
            self.run = _read_run(path)
            before = json.dumps(self.run)
            yield self.run
            if json.dumps(self.run) != before:
                write_json(path, self.run)


def _check_folder(out: Path, name: str, run_name: str) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={str(out)!r} is a file: choose a folder for the run")
    # Looked at once: a process that starts at the same time may be making the run meanwhile.
    found = sorted(path.name for path in out.iterdir() if path.name[0] != ".") if out.exists() else []
    if run_name in found:
        return
    if f"{name}.jsonl" in found:
        raise ValueError(f"out={str(out)!r} holds {name}.jsonl but no {run_name}: choose another --out")
    if found and not _RUNS & set(found):
        raise ValueError(
            f"out={str(out)!r} holds {', '.join(found[:3])}{' and more' if len(found) > 3 else ''} but no "
            f"{run_name}: choose a new or empty folder"
        )


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
    changed = [key for key in sorted({*now, *then} - _NO_FIGURE) if now.get(key) != then.get(key)]
    if changed:
        differences = ", ".join(f"{key} was {then.get(key)!r} and is now {now.get(key)!r}" for key in changed)
        raise ValueError(
            f"out={str(out)!r} holds a run with other settings: {differences}; choose another --out or the same "
            "settings"
        )
    return run
