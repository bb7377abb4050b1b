"""What a run's folder holds, read for reports: a needle run, a run of tasks, a cost run, or a suite of these.

The numbers are counted afresh from the rows, which are the record; ``summary.json`` adds what rows do not know
(claims, plans, versions). So a run that was killed before its last summary is still told truly.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from . import extension, tally
from .controls import is_control
from .effective import Climb
from .effective_summary import summarise as climbed
from .rows import row_files, rows_of
from .stats import summarise as counted

Row = Mapping[str, Any]

KINDS = ("needle", "tasks", "cost")
"""What a part of a suite measures."""
EXTENSION = "extension"
"""The kind of the part that tells of an extended model; its record is the run's ``extend.json``."""
_FIGURES = ("ttft_seconds", "prefill_tokens_per_second", "decode_tokens_per_second", "peak_bytes", "cache_bytes")
SUITE = "suite.json"
"""The file that makes a folder a suite."""


@dataclass(frozen=True)
class Part:
    """One measurement of one model.

    Attributes:
        name: what a suite calls it, or its kind.
        kind: one of `KINDS`, or `EXTENSION`.
        model: whose.
        summary: as in ``summary.json``, or ``cost.json`` for a cost run. For `needle` and `tasks` each of its
            ``variants`` has ``lengths`` (entries with ``length``, ``n``, ``score``, ``low``, ``high``), ``cells``,
            ``control`` and ``effective``, whose rules have ``low`` and ``high``: at least low, below high.
        rows: as in ``rows.jsonl`` or ``cost.jsonl``.
    """

    name: str
    kind: str
    model: str
    summary: Mapping[str, Any]
    rows: Sequence[Row]

    @property
    def variants(self) -> Mapping[str, Mapping[str, Any]]:
        """Name to what the summary says of it."""
        return self.summary["variants"]

    @property
    def recall(self) -> bool:
        """Whether it asks questions and scores the answers."""
        return self.kind in ("needle", "tasks")

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the run was asked to do."""
        return self.summary.get("settings") or {}

    @property
    def lengths(self) -> list[int]:
        """Lengths that have a row, ascending."""
        return sorted({row["length"] for row in self.rows})


@dataclass(frozen=True)
class Run:
    """What a folder holds.

    Attributes:
        name: of the suite, or of the folder.
        parts: at least one, in order.
        facts: ``command``, ``versions``, ``hardware`` and ``started``, where they are known.
        waiting: parts of a suite that have no row yet.
        suite: whether it is one.
    """

    name: str
    parts: tuple[Part, ...]
    facts: Mapping[str, Any]
    waiting: tuple[str, ...] = ()
    suite: bool = False

    @property
    def model(self) -> str:
        """The model, or models, that it is about."""
        return ", ".join(dict.fromkeys(part.model for part in self.parts))


def read(folder: Path) -> Run:
    """Read a folder that ``needle``, ``effective``, ``cost``, ``eval`` or ``extend`` wrote, finished or not.

    Args:
        folder: with ``rows.jsonl``, ``cost.jsonl`` or both; with ``suite.json``, whose parts are such folders; or with
            ``extend.json``, beside a folder ``needle`` where the model was asked.

    Raises:
        ValueError: no folder, nothing of a run in it, no row yet, a broken line before the last, a broken file.
    """
    hint = "give the folder that `hf-longctx needle`, `effective`, `cost`, `eval` or `extend` wrote with --out"
    if not folder.is_dir():
        raise ValueError(f"run={str(folder)!r}: no such folder; {hint}")
    if (folder / SUITE).is_file():
        return _suite(folder)
    if (folder / extension.RECORD).is_file():
        return _extended(folder)
    parts = _parts(folder)
    if not parts:
        found = [path.name for name in ("rows", "cost") for path in row_files(folder, name)]
        if found:
            raise ValueError(f"run={str(folder)!r}: {found[0]} has no row yet; let the run answer its first question")
        if (folder / "distill.json").is_file():
            raise ValueError(
                f"run={str(folder)!r}: README.md and curves.png tell of a run of `hf-longctx distill`; give "
                f"{str(folder / 'needle-before')!r} or needle-after for the pages of its needle tests"
            )
        raise ValueError(f"run={str(folder)!r}: the folder has no rows.jsonl and no cost.jsonl; {hint}")
    facts = {key: parts[0].summary.get(key) for key in ("versions", "hardware", "started")}
    commands = dict.fromkeys(str(part.summary["command"]) for part in parts if part.summary.get("command"))
    return Run(folder.resolve().name, tuple(parts), facts | {"command": "\n".join(commands)})


def recounted(folder: Path) -> Mapping[str, Any] | None:
    """The summary of the needles or tasks in a folder, counted from its rows; None if it has none.

    Raises:
        ValueError: a broken line before the last, a broken file.
    """
    return next((part.summary for part in _parts(folder) if part.kind != "cost"), None)


def recall(summary: Mapping[str, Any], rows: Iterable[Row]) -> Part:
    """A needle run or a run of tasks as a part, its statistics counted from the rows.

    Args:
        summary: as in ``summary.json`` or ``run.json``; may lack whatever a young run lacks.
        rows: as in ``rows.jsonl``.

    Raises:
        ValueError: a row that is none.
    """
    rows = list(rows)
    known: Mapping[str, Mapping[str, Any]] = summary.get("variants") or {}
    settings = summary.get("settings") or {}
    kind = "tasks" if settings.get("kind") == "tasks" else "needle"
    try:
        if kind == "tasks":
            tasks = list(summary.get("tasks") or dict.fromkeys(row["task"] for row in rows))
            summary, variants = {**summary, "tasks": tasks}, _tasks(known, rows, tasks, summary)
        else:
            variants = _needle(known, rows)
    except (KeyError, TypeError) as error:
        raise ValueError(f"a row of the run is not whole ({error!r}): restore rows.jsonl, or run again") from error
    model = str(summary.get("model") or settings.get("model") or "unnamed model")
    return Part(kind, kind, model, {**summary, "model": model, "variants": variants}, rows)


def as_trials(part: Part) -> tuple[list[Row], list[str]]:
    """The scored rows in the form of `tally`: of a needle run each depth is a task.

    Args:
        part: of kind `needle` or `tasks`.

    Returns:
        The rows and the names of the tasks.
    """
    if part.kind == "tasks":
        return list(part.rows), list(part.summary["tasks"])
    rows: list[Row] = []
    for row in part.rows:
        if not is_control(row):
            task = f"depth {row['depth']:g}"
            rows.append({**row, "task": task, "kind": task, "score": float(row["outcome"] == "hit")})
    return rows, list(dict.fromkeys(row["task"] for row in rows))


def plain_name(model: str | None) -> str | None:
    """A model's name without the short form that only the command line knows."""
    from hf_longctx.hf.loading import BUNDLED, DEMO

    return BUNDLED if model == DEMO else model


# ------------------------------------------------------------------ folders


def _parts(folder: Path) -> list[Part]:
    found = []
    rows = rows_of(folder, "rows")
    if rows:
        started, latest = _object(folder / "run.json"), _object(folder / "summary.json")
        # run.json knows every variant that has begun; the summary may lag behind it, but knows more of each.
        names = {**started.get("variants", {}), **latest.get("variants", {})}
        known = {
            name: {**started.get("variants", {}).get(name, {}), **latest.get("variants", {}).get(name, {})}
            for name in names
        }
        try:
            searched = {"climb": started["climb"]} if "climb" in started else {}  # how it was started last
            found.append(recall({**started, **latest, **searched, "variants": known}, rows))
        except ValueError as error:
            raise ValueError(f"run={str(folder)!r}: {error}") from error
    rows = rows_of(folder, "cost")
    if rows:
        summary = _object(folder / "cost.json")
        for row in rows:
            lacking = [key for key in _FIGURES if key not in row] if row.get("outcome") == "ok" else []
            if lacking or "outcome" not in row:
                raise ValueError(f"run={str(folder)!r}: a row of cost.jsonl lacks {', '.join(lacking) or 'outcome'}")
        names = dict.fromkeys([*summary.get("variants", {}), *(row["variant"] for row in rows)])
        variants = {name: summary.get("variants", {}).get(name, {}) for name in names}
        model = plain_name((summary.get("settings") or {}).get("model"))
        found.append(Part("cost", "cost", str(model or "unnamed model"), {**summary, "variants": variants}, rows))
    return found


def _suite(folder: Path) -> Run:
    suite = _object(folder / SUITE)
    parts: list[Part] = []
    waiting: list[str] = []
    where = folder / SUITE
    try:
        asked = [(str(one["name"]), str(one["kind"]), one.get("model"), str(one["folder"])) for one in suite["parts"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{where}: no suite ({error!r}); run `hf-longctx eval` again") from error
    for name, kind, model, inside in asked:
        place = PurePosixPath(inside)
        # A suite may come from anyone: it must not make a report read other places.
        if kind not in KINDS or place.is_absolute() or ".." in place.parts:
            raise ValueError(
                f"{where}: part {name!r} has kind {kind!r} and folder {inside!r}: the kind must be one of "
                f"{', '.join(KINDS)}, the folder one inside the run"
            )
        own = [part for part in _parts(folder / place) if part.kind == kind] if (folder / place).is_dir() else []
        if not own and (folder / place / "summary.json").is_file():
            raise ValueError(
                f"run={str(folder)!r}: part {name!r} has summary.json and no rows, without which its share of the "
                f"page would be lost: put rows.jsonl back into {inside}, or read the report.html that is there"
            )
        parts += [replace(part, name=name, model=str(plain_name(model) or part.model)) for part in own]
        waiting += [] if own else [name]
    if not parts:
        raise ValueError(f"run={str(folder)!r}: no part of the suite has a row yet; let the run answer a question")
    return Run(str(suite.get("name") or folder.resolve().name), tuple(parts), suite, tuple(waiting), True)


def _extended(folder: Path) -> Run:
    record, card = _object(folder / extension.RECORD), folder / "README.md"
    try:
        summary = extension.summary(record, card.read_text(encoding="utf-8") if card.is_file() else "")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"run={str(folder)!r}: {extension.RECORD} is not whole ({error!r}); run again") from error
    inside = _parts(folder / "needle") if (folder / "needle").is_dir() else []
    parts = [Part("extended window", EXTENSION, summary["model"], summary, ()), *inside]
    facts = {key: inside[0].summary.get(key) for key in ("hardware", "started")} if inside else {}
    facts |= {"versions": record.get("versions"), "command": record.get("command")}
    return Run(folder.resolve().name, tuple(parts), facts)


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error.msg}); delete it, or run again to have it rewritten") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds a {type(found).__name__}, not an object; delete it, or run again")
    return found


# ------------------------------------------------------------------ numbers


def _needle(known: Mapping[str, Mapping[str, Any]], rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    numbers = counted(rows, claimed={name: entry.get("claimed") for name, entry in known.items()})
    for entry in numbers.values():
        for one in entry["lengths"]:
            one["score"] = one["recall"]
        for found in entry["effective"].values():
            fails = [int(length) for length, call in found["verdicts"].items() if call == "fail"]
            found |= {"low": found["length"], "high": min(fails, default=None), "confidence": None}
    return {name: {**known.get(name, {}), **entry} for name, entry in numbers.items()}


def _tasks(
    known: Mapping[str, Mapping[str, Any]], rows: Sequence[Row], tasks: Sequence[str], facts: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    found, climb = {}, None
    if noted := facts.get("climb"):  # a run of fixed trials has none
        climb = Climb(**{**noted, "ladder": tuple(noted["ladder"])})
    for name in dict.fromkeys([*known, *(row["variant"] for row in rows)]):
        entry = {"claimed": None, **known.get(name, {})}
        scores = tally.scores(rows, name, tasks)
        if climb is not None:  # afresh: the summary may be older than the last rows
            unfit = tally.unfit(rows, name, tasks)
            judged = climbed(scores, climb, entry["claimed"], seed=facts.get("seed", 0), unfit=unfit)
        else:
            judged = entry.get("effective") or _climbed(scores, entry["claimed"])
        invalid = [str(row["reason"]) for row in rows if row["variant"] == name and row["outcome"] == "invalid"]
        found[name] = {
            **entry,
            "effective": judged,
            "reasons": dict(Counter(invalid)),
            **tally.numbers(rows, name, tasks),
        }
    return found


def _climbed(scores: Mapping[int, Sequence[float | None]], claimed: int | None) -> dict[str, Any]:
    """A run that asked a fixed number of trials, judged by the same tests as one that climbs."""
    usable = {length: given for length, given in scores.items() if any(one is not None for one in given)}
    if not usable:
        return {}
    climb = Climb(tuple(usable), min(map(len, usable.values())), bisections=0)
    return climbed(usable, climb, claimed)
