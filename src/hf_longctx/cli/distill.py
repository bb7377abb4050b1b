"""`hf-longctx distill`: attention layers become Mamba-2 layers and are healed, measured, and saved."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_longctx.cli.shared import Device, Dtype, Model, command_line, one_length, parse_lengths, trained

_STAGES = "align:400,match:400"  # checked by a test against the library's, which is not imported for --help


def distill(
    model: Model,
    mamba: Annotated[str, typer.Option("--mamba", help="Layers to convert and how, such as 1::4.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the result; a stopped run goes on there.")],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="Text: kjv, prose, a folder, a file (.txt .md .jsonl .parquet), a data set: NAME, NAME:CONFIG.",
        ),
    ] = "kjv",
    attention: Annotated[str | None, typer.Option("--attention", help="A pattern for the layers that stay.")] = None,
    rope: Annotated[str | None, typer.Option("--rope", help="A scaling, such as yarn:4.")] = None,
    own_windows: Annotated[str, typer.Option("--own-windows", help="intersect or replace.")] = "intersect",
    stages: Annotated[
        str,
        typer.Option(
            "--stages",
            help="OBJECTIVE:STEPS[:LEARNING_RATE] one by one: align (each layer to its attention), match (the logits) "
            "or text (cross entropy).",
        ),
    ] = _STAGES,
    length: Annotated[str, typer.Option("--length", help="Tokens of a training sequence.")] = "1k",
    batch: Annotated[int, typer.Option("--batch", help="Sequences of a step, over all processes.")] = 8,
    micro_batch: Annotated[int, typer.Option("--micro-batch", help="Sequences computed at once.")] = 1,
    text_field: Annotated[str, typer.Option("--text-field", help="Where a row has its text.")] = "text",
    split: Annotated[str, typer.Option("--split", help="Of a data set.")] = "train",
    seed: Annotated[int, typer.Option("--seed", help="Of data order and of the needle test.")] = 0,
    held_out: Annotated[str, typer.Option("--held-out", help="Tokens for perplexity and KL; 0 for none.")] = "8k",
    needle: Annotated[
        str | None, typer.Option("--needle", help="Lengths of the needle test, or none. [default: that of --length]")
    ] = None,
    no_checkpointing: Annotated[
        bool, typer.Option("--no-checkpointing", help="Keep all activations: faster, and more memory.")
    ] = False,
    save_every: Annotated[int | None, typer.Option("--save-every", help="Steps between checkpoints.")] = None,
    report_to: Annotated[str, typer.Option("--report-to", help="Also log to tensorboard, wandb, ...")] = "none",
    dtype: Dtype = None,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as one JSON document.")] = False,
) -> None:
    """Convert layers to Mamba-2, heal them by distillation from the same model, measure, and save.

    Raises:
        ValueError: settings that cannot work, or training gone wrong.
        ModuleNotFoundError: a package is missing.
    """
    from hf_longctx.hf.loading import BUNDLED, DEMO
    from hf_longctx.training.distillation import distill as run

    train = functools.partial(
        run,
        model,
        mamba=mamba,
        data=data,
        out=out,
        attention=attention,
        rope=rope,
        own_windows=own_windows,
        stages=stages,
        length=one_length("--length", length),
        batch=batch,
        micro_batch=micro_batch,
        text_field=text_field,
        split=split,
        seed=seed,
        checkpointing=not no_checkpointing,
        held_out=one_length("--held-out", held_out),
        needle=None if needle is None else () if needle == "none" else tuple(parse_lengths(needle, "--needle")),
        save_every=save_every,
        dtype=dtype,
        device=device,
        report_to=report_to,
        model_name=BUNDLED if model == DEMO else model,
        command=command_line(),
    )
    trained(train, _show, out, as_json)


def _show(record: dict[str, Any], out: Path) -> None:
    from accelerate import PartialState
    from rich.console import Console
    from rich.table import Table

    from hf_longctx.training.distill_card import explained, quality_rows

    if not PartialState().is_main_process:
        return
    console = Console()
    head, rows = quality_rows(record)
    if rows:
        table = Table(*head)
        for cells in rows:
            table.add_row(*cells)
        console.print(table)
        console.print(explained(record), highlight=False, markup=False)
    trained = record["trained"]
    console.print(
        f"trained: {trained['what']} ({', '.join(map(str, trained['layers']))}), {trained['parameters']:,} of "
        f"{trained['of']:,} parameters",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    console.print(
        f"saved to {out}: load it with hf_longctx.from_pretrained({str(out)!r})",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
