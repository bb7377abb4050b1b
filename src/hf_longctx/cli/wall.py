"""`hf-longctx wall`: what every kind of attention costs by length, by formula, and where it outgrows a machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_longctx.cli.shared import check_plot, parse_lengths

#: Lengths that the tables show, and the last one, where more are worked out.
_SHOWN = 6


def wall(
    model: Annotated[
        str,
        typer.Argument(
            metavar="[MODEL]", help="Public model's short name, local folder, 'demo' or hub id; its config."
        ),
    ] = "llama-3.1-8b",
    attention: Annotated[
        list[str] | None,
        typer.Option("--attention", help="A pattern to compare; repeatable. [default: every pattern and preset]"),
    ] = None,
    mamba: Annotated[
        str, typer.Option("--mamba", help="Layers that are Mamba-2 layers in the last row, such as 1::2.")
    ] = "*",
    lengths: Annotated[
        str | None, typer.Option("--lengths", help="Tokens, k is 1024. [default: 1k to 2m, doubling]")
    ] = None,
    memory: Annotated[
        str, typer.Option("--memory", help="A machine such as h100, l4 or rtx4090, or a size: 24GB, 24GiB.")
    ] = "h100",
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = "bfloat16",
    chunk: Annotated[str, typer.Option("--chunk", help="Rows of a forward that reads in chunks.")] = "2k",
    out: Annotated[
        Path | None, typer.Option("--out", help="File of a plot, such as wall.png; without it none is drawn.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Work out bytes and operations of a prompt by length, for standard and flash attention, patterns and Mamba-2.

    Raises:
        ImportError: a plot is asked for and matplotlib is not installed.
        ValueError: no such model, machine, pattern or dtype, a plan that does not fit the model, or a plot that
            cannot be drawn or has nowhere to go.
    """
    from hf_longctx.hf.architecture import architecture
    from hf_longctx.hf.loading import DTYPES
    from hf_longctx.measure.machines import machine
    from hf_longctx.measure.public_models import config_of
    from hf_longctx.measure.wall import LENGTHS, methods
    from hf_longctx.measure.wall import wall as work_out
    from hf_longctx.rope.text import read_length

    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}: it must be one of {', '.join(DTYPES)}")
    compared, limit = methods(attention, mamba=mamba), machine(memory)
    tokens = list(LENGTHS) if lengths is None else sorted(set(parse_lengths(lengths)))
    if out is not None:
        if len(tokens) < 2:
            raise ValueError(
                f"--out {str(out)!r}: a plot needs two lengths, --lengths {lengths} is one: give more, or no --out"
            )
        check_plot("--out", out)
    try:
        rows = read_length(chunk)
    except ValueError as error:
        raise ValueError(f"--chunk {error}") from None
    itemsize = 4 if dtype == "float32" else 2
    sizes = architecture(config_of(model))
    document = {"model": model, "dtype": dtype} | work_out(
        sizes, compared, machine=limit, lengths=tokens, itemsize=itemsize, chunk=rows
    )
    if out is not None:
        from hf_longctx.measure.wall_plot import draw

        draw(document, out, f"{model}, {dtype}: what a prompt costs by length")
        document["plot"] = str(out)
    if as_json:
        typer.echo(json.dumps(document))
        return
    show(document)
    if out is not None:
        typer.echo(f"plot: {out}")


def show(document: dict[str, Any]) -> None:
    """Print the tables."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from hf_longctx.cli.fitting import fitting
    from hf_longctx.measure.heatmap import length_label

    console = Console()
    a, machine = document["architecture"], document["machine"]
    methods = document["methods"]
    count = len(methods[0]["rows"])

    def table(title: str, lines: list[tuple[str, dict[str, Any], str]], text: Callable[[int | None], str]) -> None:
        def laid(shown: int) -> Table:
            picked = sorted({*range(0, count, -(-count // shown)), count - 1})
            made = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
            made.add_column("", style="bold", overflow="fold")
            for i in picked:
                made.add_column(length_label(methods[0]["rows"][i]["tokens"]), justify="right", no_wrap=True)
            if any(key in method["fits"] for _, method, key in lines):
                made.add_column("fits to", justify="right", no_wrap=True)
            for name, method, key in lines:
                last = [_tokens(method["fits"][key])] if key in method["fits"] else []
                made.add_row(name, *(text(method["rows"][i][key]) for i in picked), *last)
            return made

        console.print(fitting(console, map(laid, range(_SHOWN, 0, -1))))

    def each(key: str) -> list[tuple[str, dict[str, Any], str]]:
        return [(method["name"], method, key) for method in methods]

    console.print(
        f"{document['model']} ({a['name']}): {a['parameters']:,} parameters, {a['layers']} layers, {a['heads']} query "
        f"and {a['kv_heads']} key-value heads of {a['head_dim']}, {document['dtype']}; {machine['name']} has "
        f"{machine['memory']:,} bytes",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    by_name = {method["name"]: method for method in methods}
    standard, flash = by_name["standard"], by_name["flash"]
    scores = [
        ("standard: one matrix (a head)", standard, "matrix_bytes"),
        (f"standard: a layer ({a['heads']} heads)", standard, "layer_bytes"),
        (f"standard: all {standard['rows'][0]['matrices']:,} matrices", standard, "all_scores_bytes"),
        ("flash: a layer's log-sum-exps", flash, "layer_bytes"),
        ("float32 logits of every token", flash, "all_logits_bytes"),
    ]
    table("attention scores stored", scores, size)
    table("cache and states after the prompt", each("cache_bytes"), size)
    for method in methods:
        if method["crossover"] is not None:
            console.print(
                f"{method['name']}: fewer bytes of state than of keys and values from {method['crossover']:,} tokens",
                highlight=False, markup=False, soft_wrap=True,
            )  # fmt: skip
    table("memory, prompt read at once", each("peak_bytes"), size)
    chunk = length_label(document["chunk"])
    table(f"memory, prompt read in chunks of {chunk}", each("chunked_peak_bytes"), size)
    table("operations of attention, all layers", each("attention_flops"), operations)
    table("operations of the prompt, all of the model", each("flops"), operations)


def size(count: int | None) -> str:
    """Bytes in a unit of 1000, three digits.

    >>> size(2 * 10**12), size(23040), size(None)
    ('2.00 TB', '23.0 kB', '?')
    """
    return _scaled(count, ("B", "kB", "MB", "GB", "TB", "PB", "EB"))


def operations(count: int | None) -> str:
    """Operations in a unit of 1000, three digits.

    >>> operations(1_234_000_000)
    '1.23 G'
    """
    return _scaled(count, ("", "k", "M", "G", "T", "P", "E", "Z", "Y"))


def _scaled(count: int | None, units: tuple[str, ...]) -> str:
    if count is None:
        return "?"
    value, power = float(count), 0
    while value >= 999.5 and power < len(units) - 1:
        value, power = value / 1000, power + 1
    digits = 0 if power == 0 or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:,.{digits}f} {units[power]}"


def _tokens(count: int | None) -> str:
    """Tokens rounded down to what people say."""
    if count is None:
        return "any"
    for unit, name in ((1 << 20, "M"), (1 << 10, "K")):
        if count >= unit:
            return f"{count / unit:,.4g}{name}"
    return str(count)
