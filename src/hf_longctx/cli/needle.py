"""`hf-longctx needle`: what a model recalls at each length and depth, stock and patched."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_longctx.cli.job import Job, measuring
from hf_longctx.cli.shared import (
    Attention,
    Config,
    Device,
    Dtype,
    FailUnder,
    Mamba,
    Model,
    NoStock,
    Out,
    Rope,
    Variants,
    asked_limits,
    asked_variants,
    page_of,
    parse_lengths,
)


@measuring
def needle(
    model: Model,
    variant: Variants = None,
    attention: Attention = None,
    rope: Rope = None,
    mamba: Mamba = None,
    lengths: Annotated[str, typer.Option("--lengths", help="Tokens, k is 1024: 1k,2k,4k,8k.")] = "1k,2k,4k,8k",
    depths: Annotated[int, typer.Option("--depths", help="Depths from the beginning to the end of the text.")] = 5,
    trials: Annotated[int, typer.Option("--trials", help="Times, each with other text and needles.")] = 1,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same token ids.")] = 0,
    haystack: Annotated[
        str | None,
        typer.Option("--haystack", help="kjv, prose, filler, or a folder of text. [default: prose; demo: kjv]"),
    ] = None,
    values: Annotated[str, typer.Option("--values", help="What a needle holds: digits, words or uuid.")] = "digits",
    needles: Annotated[
        str, typer.Option("--needles", help="shared: distinct facts share a context; single: one a context.")
    ] = "shared",
    style: Annotated[
        str, typer.Option("--style", help="prefix (template and answer's beginning), chat or base.")
    ] = "prefix",
    exact: Annotated[bool, typer.Option("--exact", help="Read every prompt afresh: slow, the same answers.")] = False,
    no_damage: Annotated[
        bool, typer.Option("--no-damage", help="Leave out perplexity and KL against stock by position.")
    ] = False,
    dtype: Dtype = None,
    device: Device = None,
    out: Out = None,
    no_stock: NoStock = False,
    config: Config = None,
    fail_under: FailUnder = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON document.")] = False,
) -> Job:
    """Hide facts in text and ask for them at every length and depth, for a model and patched variants of it.

    Raises:
        ValueError: Settings that cannot work, or a folder that holds another run.
        ModuleNotFoundError: A haystack or model whose package is missing.
        typer.Exit: With 1, if what --fail-under asks for is not reached.
    """
    # Read before the model is: a slip of the pen should not cost half a minute.
    from hf_longctx.hf.loading import BUNDLED, DEMO
    from hf_longctx.measure.grid import MODES
    from hf_longctx.measure.haystack import default_haystack, open_haystack
    from hf_longctx.measure.needle import run_needle
    from hf_longctx.measure.needle_lines import NeedleLines
    from hf_longctx.measure.needles import VALUE_KINDS
    from hf_longctx.measure.placement import depth_grid
    from hf_longctx.measure.prompts import STYLES

    tokens, grid = parse_lengths(lengths), depth_grid(depths)
    if trials < 1:
        raise ValueError(f"--trials {trials}: give a whole number, at least 1")
    for flag, text, allowed in (
        ("--values", values, VALUE_KINDS),
        ("--needles", needles, MODES),
        ("--style", style, STYLES),
    ):
        if text not in allowed:
            raise ValueError(f"{flag} {text!r} does not exist: choose one of {', '.join(allowed)}")
    chosen = asked_variants(variant, attention, rope, mamba)
    hay = open_haystack(haystack or (default_haystack() if model == DEMO else None))
    return Job(
        model=model,
        run=run_needle,
        options={
            "variants": chosen,
            "lengths": tokens,
            "depths": grid,
            "trials": trials,
            "seed": seed,
            "haystack": hay,
            "values": values,
            "needles": needles,
            "style": style,
            "exact": exact,
            "damage": not no_damage,
            "stock": not no_stock,
            "model_name": BUNDLED if model == DEMO else model,
        },
        on_row=NeedleLines(trials),
        show=_show,
        out=out,
        as_json=as_json,
        dtype=dtype,
        device=device,
        limits=asked_limits(fail_under, model, chosen, stock=not no_stock, kind="needle"),
    )


def _show(summary: dict[str, Any], out: Path | None) -> None:
    from rich.console import Console

    from hf_longctx.cli.fitting import fitting
    from hf_longctx.measure.controls import counts
    from hf_longctx.measure.damage import damage_lines
    from hf_longctx.measure.finding import finding
    from hf_longctx.measure.terminal_table import layouts

    console = Console()
    console.print(fitting(console, layouts(summary)))
    spent = sum(entry["prefill"]["spent"] for entry in summary["variants"].values())
    saved = sum(entry["prefill"]["saved"] for entry in summary["variants"].values())
    text = summary["haystack"]
    lines = [
        *damage_lines(summary["damage"]),
        f"text: {text['label']}; {_share(text, 'unique_share')} of its runs of 8 tokens are distinct; needles hold "
        f"{_share(text, 'overlap')} of their questions' words",
        f"prefill tokens: {spent:,} spent, {saved:,} saved against one prefill a cell",
        "controls, hits of asked: "
        + "; ".join(f"{name} {counts(entry['control'])}" for name, entry in summary["variants"].items()),
        finding(summary),
    ]
    for line in lines + page_of(out):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _share(text: dict[str, Any], key: str) -> str:
    return "an unknown share" if text.get(key) is None else f"{text[key]:.0%}"
