"""`hf-longctx extend`: a longer window by one command, trained, measured before and after, and saved."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_longctx.cli.shared import Device, Dtype, Model, command_line, one_length, page_of, parse_lengths, trained


def _list_recipes(asked: bool) -> None:
    """Every recipe on a line, and the end of the command."""
    if not asked:
        return
    from hf_longctx.training.recipes import RECIPES

    for name, one in RECIPES.items():
        steps = " + ".join(f"{stage.steps}" for stage in one.stages)
        typer.echo(f"{name:<12} {one.rope}, {one.tune}, {steps} steps of {one.batch}: {one.source}")
    raise typer.Exit


def extend(
    model: Model,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="kjv, prose, a folder or file of .txt, .md, .jsonl or .parquet, a data set's NAME, or NAME:CONFIG "
            "where it has several configurations.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the result; a stopped run goes on there.")],
    to: Annotated[str | None, typer.Option("--to", help="The window asked for, such as 32k.")] = None,
    rope: Annotated[
        str | None, typer.Option("--rope", help="yarn, linear, ntk, by-parts, llama3. [default: the recipe's]")
    ] = None,
    recipe: Annotated[str, typer.Option("--recipe", help="A paper's settings; --recipes lists them.")] = "default",
    recipes: Annotated[
        bool,
        typer.Option("--recipes", help="List the recipes with their sources.", is_eager=True, callback=_list_recipes),
    ] = False,
    lora: Annotated[bool, typer.Option("--lora", help="Train LoRA on the attention.")] = False,
    lora_plus: Annotated[bool, typer.Option("--lora-plus", help="Besides, embeddings and norms.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Train all parameters.")] = False,
    rank: Annotated[int | None, typer.Option("--rank", help="Of LoRA. [default: the recipe's, 8]")] = None,
    stages: Annotated[str | None, typer.Option("--stages", help="WINDOW:STEPS one by one: 16k:100,32k:50.")] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Optimizer steps in all. [default: the recipe's, 400]")
    ] = None,
    length: Annotated[
        str | None,
        typer.Option(
            "--length", help="Tokens of a training sequence. [default: the window; with --pose what the model learned]"
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option("--batch", help="Sequences of a step, over all processes. [default: the recipe's, 16]"),
    ] = None,
    micro_batch: Annotated[int, typer.Option("--micro-batch", help="Sequences computed at once.")] = 1,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", help="The highest. [default: the recipe's, 1e-4]")
    ] = None,
    pose: Annotated[bool, typer.Option("--pose", help="Learn the window from short sequences, by skips.")] = False,
    attention: Annotated[
        str | None, typer.Option("--attention", help="Pattern while training; the result attends in full.")
    ] = None,
    text_field: Annotated[str, typer.Option("--text-field", help="Where a row has its text.")] = "text",
    split: Annotated[str, typer.Option("--split", help="Of a data set.")] = "train",
    seed: Annotated[int, typer.Option("--seed", help="Of data order, skips and LoRA's first weights.")] = 0,
    needle: Annotated[
        str | None, typer.Option("--needle", help="Lengths of a needle test before and after: 2k,8k,32k.")
    ] = None,
    no_measure: Annotated[bool, typer.Option("--no-measure", help="Leave perplexity before and after out.")] = False,
    no_merge: Annotated[bool, typer.Option("--no-merge", help="Save the adapter alone.")] = False,
    no_checkpointing: Annotated[
        bool, typer.Option("--no-checkpointing", help="Keep all activations: faster, and much more memory.")
    ] = False,
    max_first_loss: Annotated[
        float | None, typer.Option("--max-first-loss", help="Stop if the first step's loss is higher.")
    ] = None,
    save_every: Annotated[int | None, typer.Option("--save-every", help="Steps between checkpoints.")] = None,
    report_to: Annotated[str, typer.Option("--report-to", help="Also log to tensorboard, wandb, ...")] = "none",
    dtype: Dtype = None,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as one JSON document.")] = False,
) -> None:
    """Scale RoPE, train on long text, measure before and after, and save a model that loads anywhere.

    Raises:
        ValueError: settings that cannot work, or training gone wrong.
        ModuleNotFoundError: a package is missing.
    """
    from hf_longctx.hf.loading import BUNDLED, DEMO
    from hf_longctx.training.extension import extend as run

    tune = chosen_tune(lora=lora, lora_plus=lora_plus, full=full)
    train = functools.partial(
        run,
        model,
        data=data,
        out=out,
        to=None if to is None else one_length("--to", to),
        rope=rope,
        recipe=recipe,
        tune=tune,
        rank=rank,
        stages=stages,
        steps=steps,
        length=None if length is None else one_length("--length", length),
        batch=batch,
        micro_batch=micro_batch,
        learning_rate=learning_rate,
        pose=pose,
        attention=attention,
        text_field=text_field,
        split=split,
        seed=seed,
        checkpointing=not no_checkpointing,
        merge=not no_merge,
        measure=not no_measure,
        needle=tuple(parse_lengths(needle, "--needle")) if needle else (),
        max_first_loss=max_first_loss,
        save_every=save_every,
        dtype=dtype,
        device=device,
        report_to=report_to,
        model_name=BUNDLED if model == DEMO else model,
        command=command_line(),
    )
    trained(train, _show, out, as_json)


def chosen_tune(**given: bool) -> str | None:
    """The one way of tuning whose option is given; None without any.

    Raises:
        ValueError: several.
    """
    chosen = [name.replace("_", "-") for name, on in given.items() if on]
    if len(chosen) > 1:
        raise ValueError(f"--{chosen[0]} and --{chosen[1]} are both given: choose one")
    return chosen[0] if chosen else None


def _show(record: dict[str, Any], out: Path) -> None:
    from accelerate import PartialState
    from rich.console import Console
    from rich.table import Table

    from hf_longctx.training.card import perplexity_rows

    if not PartialState().is_main_process:
        return
    head, rows = perplexity_rows(record)
    console = Console()
    if rows:
        table = Table(*head, title="perplexity on held-out text")
        for cells in rows:
            table.add_row(*cells)
        console.print(table)
    final = record["stages"][-1]
    console.print(
        f"{out}: {record['settings']['model']} for {final['window']:,} tokens under {final['rope']}",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    for line in page_of(out):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
