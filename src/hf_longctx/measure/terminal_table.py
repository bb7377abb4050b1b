"""A run of needles or tasks as a table for the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_longctx.measure.controls import caveat
from hf_longctx.measure.finding import effective_text
from hf_longctx.measure.heatmap import length_label
from hf_longctx.measure.stats import RULES

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def layouts(summary: Mapping[str, Any]) -> Iterator[RenderableType]:
    """The run for a terminal, from the widest form to the narrowest: one table, or the lengths in several of them.

    Args:
        summary: A summary as in ``summary.json``.

    Yields:
        Rich tables, or groups of them.
    """
    from rich.console import Group

    yield terminal_table(summary)
    lengths = lengths_of(summary)
    for most in range(len(lengths), 0, -1):
        # As even as it goes: 12 lengths of which 9 fit are 6 and 6.
        blocks = -(-len(lengths) // most)
        size = -(-len(lengths) // blocks)
        parts = [lengths[start : start + size] for start in range(0, len(lengths), size)]
        recall = [terminal_table(summary, lengths=part, verdict=False) for part in parts]
        yield Group(*recall, terminal_table(summary, lengths=[]))


def lengths_of(summary: Mapping[str, Any]) -> list[int]:
    """The lengths that a run asked at, in tokens."""
    return sorted({part["length"] for entry in summary["variants"].values() for part in entry["lengths"]})


def terminal_table(summary: Mapping[str, Any], lengths: Sequence[int] | None = None, *, verdict: bool = True) -> Table:
    """The run as a table for the terminal: hits of n by length, and effective against claimed length.

    Args:
        summary: A summary as in ``summary.json``.
        lengths: Those that get a column, in tokens. Default: all.
        verdict: Whether the effective lengths are in it, and the notes below it.

    Returns:
        A rich table, a row a variant.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    entries = summary["variants"]
    lengths = lengths_of(summary) if lengths is None else lengths
    # Tight, so that five lengths with two-digit counts fit into 80 columns.
    table = Table(box=box.SIMPLE_HEAD, caption_justify="left", padding=(0, 1, 0, 0))
    table.add_column("variant", style="bold", overflow="fold", min_width=min(16, max(map(len, entries), default=0)))
    table.add_column("claims", justify="right", no_wrap=True)
    for length in lengths:
        table.add_column(length_label(length), justify="right", no_wrap=True)
    rules = list(RULES) if verdict else []
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
    if not verdict:
        return table
    notes = [f"{name}: {entry['control']['note']}" for name, entry in entries.items() if _doubted(entry)]
    notes += [f"{name}: {said}" for name, entry in entries.items() if (said := caveat(entry.get("control", {})))]
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
