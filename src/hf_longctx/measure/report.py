"""Write the report of a run folder: the page, the picture, the table for the terminal.

The numbers come from the rows, which are the record; ``summary.json`` adds what rows do not know (claims, plans,
versions). So a run that was killed before its last summary still gets a true report.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_longctx.measure import heatmap
from hf_longctx.measure.finding import effective_text, finding
from hf_longctx.measure.heatmap import length_label
from hf_longctx.measure.stats import RULES, summarise
from hf_longctx.measure.store import row_files

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["attempt", "effective_text", "finding", "load", "terminal_table", "write"]

logger = logging.getLogger(__name__)


def write(run: Path) -> list[Path]:
    """Write ``report.html`` and ``heatmap.png`` into a run folder, replacing older ones.

    Each file is replaced in one step when it is complete.

    Args:
        run: The folder of a needle run, finished or not, with ``rows.jsonl`` and (soon after the start)
            ``summary.json``; or of a suite, whose needle parts get theirs.

    Returns:
        The paths of the page and of the picture.

    Raises:
        ImportError: jinja2 or matplotlib is not installed; nothing has been written.
        ValueError: The folder has no rows, or its files cannot be read as a run.
    """
    lacking = [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]
    if lacking:
        raise ImportError(f'the report needs {" and ".join(lacking)}: pip install "hf_longctx[report]"')
    if (run / "suite.json").is_file():
        parts = json.loads((run / "suite.json").read_text(encoding="utf-8"))["parts"]
        own = [run / part["folder"] for part in parts if part["kind"] == "needle" and row_files(run / part["folder"])]
        return [path for folder in own for path in write(folder)]
    from hf_longctx.measure.page import render

    summary, rows = load(run)
    page, picture = run / "report.html", run / "heatmap.png"
    html = render(summary, rows)
    heatmap.draw(summary, picture)
    with heatmap.replacing(page) as partial:
        partial.write_text(html, encoding="utf-8")
    return [page, picture]


def attempt(run: Path) -> None:
    """Write the report at the end of a run; without the packages that it needs, say so and go on."""
    try:
        write(run)
    except ImportError as error:
        logger.warning("no report page: %s", error)


def load(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read a run: its summary, with the statistics counted afresh from the rows, and the rows.

    Args:
        run: The folder of a needle run.

    Returns:
        ``(summary, rows)``; the summary always has ``variants``, each with the keys of `stats.summarise`.

    Raises:
        ValueError: No folder, no ``rows.jsonl``, no row in it, a broken line before the last, or a broken summary.
    """
    hint = "give the folder that `hf-longctx needle --out` wrote"
    if not run.is_dir():
        raise ValueError(f"run={str(run)!r}: no such folder; {hint}")
    sources = row_files(run)
    if not sources:
        raise ValueError(f"run={str(run)!r}: the folder has no rows.jsonl; {hint}")
    rows = [row for source in sources for row in _read_rows(source)]
    if not rows:
        raise ValueError(f"run={str(run)!r}: rows.jsonl has no row yet; let the run answer its first question")
    started, latest = _read_object(run / "run.json"), _read_object(run / "summary.json")
    # run.json knows every variant that has begun; the summary may lag behind it, but knows more of each.
    known = {
        name: {**started.get("variants", {}).get(name, {}), **latest.get("variants", {}).get(name, {})}
        for name in {**started.get("variants", {}), **latest.get("variants", {})}
    }
    summary = {**started, **latest}
    if summary.get("settings", {}).get("kind") == "tasks":
        raise ValueError(f"run={str(run)!r} is a run of tasks, which has no page: read its summary.json, or {hint}")
    summary.setdefault("model", summary.get("settings", {}).get("model"))
    counted = summarise(rows, claimed={name: entry.get("claimed") for name, entry in known.items()})
    summary["variants"] = {name: known.get(name, {}) | numbers for name, numbers in counted.items()}
    return summary, rows


def _read_rows(path: Path) -> list[dict[str, Any]]:
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


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error.msg}); delete it, or run again to have it rewritten") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds a {type(found).__name__}, not an object; delete it, or run again")
    return found


def terminal_table(summary: Mapping[str, Any]) -> Table:
    """The run as a table for the terminal: hits of n by length, and effective against claimed length.

    Args:
        summary: A summary as in ``summary.json``.

    Returns:
        A rich table, a row a variant.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    entries = summary["variants"]
    lengths = sorted({part["length"] for entry in entries.values() for part in entry["lengths"]})
    # Tight, so that five lengths with two-digit counts fit into 80 columns.
    table = Table(box=box.SIMPLE_HEAD, caption_justify="left", padding=(0, 1, 0, 0))
    table.add_column("variant", style="bold", overflow="fold", min_width=min(16, max(map(len, entries), default=0)))
    table.add_column("claims", justify="right", no_wrap=True)
    for length in lengths:
        table.add_column(length_label(length), justify="right", no_wrap=True)
    rules = list(RULES)
    for rule in rules:
        table.add_column(f"effective\n{rule}", no_wrap=True)
    example: re.Match[str] | None = None
    for name, entry in entries.items():
        pooled = {part["length"]: part for part in entry["lengths"]}
        cells = [_recall_cell(pooled.get(length), Text) for length in lengths]
        judged = [effective_text(entry["effective"][rule]).replace(", ", "\n") for rule in rules]
        example = example or next(filter(None, (re.search(r"\+(\d+) at (\w+)", text) for text in judged)), None)
        claimed = entry.get("claimed")
        table.add_row(Text(name), length_label(claimed) if claimed else "?", *cells, *judged)
    notes = [f"{name}: {entry['control']['note']}" for name, entry in entries.items() if _doubted(entry)]
    for name, entry in entries.items():
        notes += [f"{name}: {number} invalid, not counted: {why}" for why, number in entry["reasons"].items()]
    if example:
        more, at = example.groups()
        notes.insert(
            0, f"{example.group()} reads: undecided; {more} more straight hits at {at} would prove that length"
        )
    table.caption = Text("\n".join(notes)) if notes else None
    return table


def _doubted(entry: Mapping[str, Any]) -> bool:
    return entry.get("control", {}).get("trusted") is False


def _recall_cell(part: Mapping[str, Any] | None, text: Any) -> Any:
    if part is None or not part["n"]:
        return text("invalid" if part and part["invalid"] else "-", style="dim")
    style = "green" if part["recall"] >= 0.85 else "yellow" if part["recall"] >= 0.3 else "red"
    return text(f"{part['hits']}/{part['n']}", style=style)
