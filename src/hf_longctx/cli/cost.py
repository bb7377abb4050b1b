"""`hf-longctx cost`: time, memory and cache of a model at each length, measured, stock and patched."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_longctx.cli.job import Job, measuring
from hf_longctx.cli.shared import (
    Attention,
    Config,
    Device,
    Dtype,
    Mamba,
    Model,
    NoStock,
    Out,
    Rope,
    Variants,
    asked_variants,
    page_of,
    parse_lengths,
)


@measuring
def cost(
    model: Model,
    variant: Variants = None,
    attention: Attention = None,
    rope: Rope = None,
    mamba: Mamba = None,
    lengths: Annotated[str, typer.Option("--lengths", help="Tokens, k is 1024: 1k,2k,4k.")] = "1k,2k,4k",
    repeats: Annotated[int, typer.Option("--repeats", help="Timed runs, after one that is not.")] = 3,
    steps: Annotated[int, typer.Option("--steps", help="Tokens decoded after the prompt.")] = 16,
    chunk: Annotated[
        str | None, typer.Option("--chunk", help="Rows of one forward of the prompt. [default: all at once]")
    ] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", help="What a process may take, such as 8GB. [default: what is free]")
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds for one variant and length.")] = 600.0,
    retry: Annotated[
        bool, typer.Option("--retry", help="Measure rows of this folder that ran out of memory or time again.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of the random prompt.")] = 0,
    dtype: Dtype = None,
    device: Device = None,
    out: Out = None,
    no_stock: NoStock = False,
    no_standard: Annotated[
        bool, typer.Option("--no-standard", help="Leave standard attention, whose scores are stored, out.")
    ] = False,
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print settings and rows as one JSON document.")] = False,
) -> Job:
    """Time the first token, prefill and decoding, and measure memory and cache, each in a process of its own.

    Raises:
        ValueError: settings that cannot work, or a folder that holds another run.
    """
    from hf_longctx.measure.cost import EAGER
    from hf_longctx.measure.machines import read_bytes
    from hf_longctx.rope.text import read_length

    tokens = parse_lengths(lengths)
    asked = asked_variants(variant, attention, rope, mamba)
    for flag, number in (("--repeats", repeats), ("--steps", steps)):
        if number < 1:
            raise ValueError(f"{flag} {number}: give a whole number, at least 1")
    if any(one.name == EAGER for one in asked):
        raise ValueError(f"the variant name {EAGER!r} is that of standard attention: choose another")
    return Job(
        model=model,
        run=functools.partial(_measured, tokens),
        options={
            "variants": asked,
            "repeats": repeats,
            "steps": steps,
            "chunk": None if chunk is None else read_length(chunk),
            "seed": seed,
            "dtype": dtype,
            "device": device,
            "memory": None if memory is None else read_bytes(memory),
            "timeout": timeout,
            "stock": not no_stock,
            "standard": not no_standard,
            "retry": retry,
        },
        on_row=_line,
        show=_show,
        out=out,
        as_json=as_json,
        dtype=dtype,
        device=device,
        loads=False,
        verb="measured",
    )


def _measured(lengths: list[int], model: str, **options: Any) -> dict[str, Any]:
    """The document of a run with the rows of these lengths; its folder may hold more."""
    from hf_longctx.measure.cost import run_cost

    document = run_cost(model, lengths=lengths, **options)
    return document | {"rows": [row for row in document["rows"] if row["length"] in lengths]}


def _show(document: dict[str, Any], out: Path | None) -> None:
    from rich.console import Console

    from hf_longctx.cli.wall import size
    from hf_longctx.measure.cost import UNMEASURED
    from hf_longctx.measure.heatmap import length_label
    from hf_longctx.measure.sections.cost import ended

    console = Console()
    console.print(table(document["rows"]))
    lines = [
        f"{row['variant']} at {length_label(row['length'])}: {ended(row, size)}"
        for row in document["rows"]
        if row["outcome"] != "ok"
    ]
    if out is not None:
        if any(row["outcome"] in UNMEASURED for row in document["rows"]):
            lines.append("rows without figures are kept when this goes on; --retry measures them again")
        lines += [f"rows: {out / 'cost.jsonl'}", *page_of(out)]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _line(row: dict[str, Any]) -> None:
    """A line on stderr as soon as a row is there."""
    from hf_longctx.cli.wall import size
    from hf_longctx.measure.sections.cost import ended

    done = row["outcome"] == "ok"
    said = f"{row['ttft_seconds']['median']:.2f} s to the first token" if done else ended(row, size)
    reason = f" ({row['reason']})" if row["reason"] else ""
    typer.echo(f"{row['variant']:<12} {row['length']:>9,} tokens  {said}{reason}, {row['seconds']:.0f} s", err=True)


def table(rows: list[dict[str, Any]]) -> Any:
    """The rows for the terminal.

    Args:
        rows: as `run_cost` returns them.

    Returns:
        A rich table.
    """
    from rich import box
    from rich.table import Table

    from hf_longctx.cli.wall import size
    from hf_longctx.measure.heatmap import length_label

    caption = "working: the most that the prefill took beside the weights; model: the same by formula"
    laid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    for heading in ("tokens", "variant"):
        laid.add_column(heading, style="bold", no_wrap=True)
    for heading in ("first\ntoken s", "prefill\ntok/s", "decode\ntok/s", "peak", "working", "model", "cache"):
        # Where room is short the spread of a time goes below it, and no column goes.
        laid.add_column(heading, justify="right", no_wrap=heading in ("peak", "working", "model"))
    for row in rows:
        head = (length_label(row["length"]), row["variant"])
        if row["outcome"] != "ok":
            by_model = row.get("modelled_working_bytes")
            laid.add_row(*head, row["outcome"], *[""] * 4, "" if by_model is None else size(by_model))
            continue
        timed = ("ttft_seconds", "prefill_tokens_per_second", "decode_tokens_per_second")
        sizes = ("peak_bytes", "working_bytes", "modelled_working_bytes", "cache_bytes")
        cells = [size(row[key]) for key in sizes]
        if row["cache_bytes"] != row["described_cache_bytes"]:
            cells[-1] += f", described {size(row['described_cache_bytes'])}"
        laid.add_row(*head, *(_about(row[key]) for key in timed), *cells)
    return laid


def _about(part: dict[str, Any]) -> str:
    """Median, and half the distance of the quartiles in per cent of it.

    >>> _about({"median": 1234.0, "low": 1200.0, "high": 1280.0})
    '1,234 ±3%'
    >>> _about({"median": 0.0512, "low": 0.05, "high": 0.0512})
    '0.0512 ±1%'
    """
    middle = part["median"]
    shown = f"{middle:,.0f}" if middle >= 100 else f"{middle:.3g}"
    return f"{shown} ±{50 * (part['high'] - part['low']) / middle:.0f}%"
