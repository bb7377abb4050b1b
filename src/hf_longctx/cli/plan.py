"""`hf-longctx plan`: what training a longer window takes on each device, and what to do if it does not fit."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer


def plan(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Public model's short name, local folder, 'demo' or hub id."),
    ],
    to: Annotated[str, typer.Option("--to", help="The window asked for, such as 64k.")],
    lora: Annotated[bool, typer.Option("--lora", help="Train LoRA on the attention.")] = False,
    lora_plus: Annotated[bool, typer.Option("--lora-plus", help="Besides, embeddings and norms. [default]")] = False,
    full: Annotated[bool, typer.Option("--full", help="Train all parameters.")] = False,
    length: Annotated[
        str | None, typer.Option("--length", help="Tokens of a training sequence. [default: as in extend]")
    ] = None,
    pose: Annotated[bool, typer.Option("--pose", help="Learn the window from short sequences, by skips.")] = False,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="Of the weights as loaded. [default: what extend takes]")
    ] = None,
    device_memory: Annotated[
        str, typer.Option("--device-memory", help="A machine such as h100 or rtx4090, or a size: 80GB, 80GiB.")
    ] = "h100",
    devices: Annotated[int, typer.Option("--devices", help="How many share the batch.")] = 1,
    shard: Annotated[
        bool, typer.Option("--shard", help="They share weights, gradients and optimizer too (FSDP, ZeRO-3).")
    ] = False,
    micro_batch: Annotated[int, typer.Option("--micro-batch", help="Sequences computed at once.")] = 1,
    rank: Annotated[int, typer.Option("--rank", help="Of LoRA.")] = 8,
    no_checkpointing: Annotated[bool, typer.Option("--no-checkpointing", help="Keep all activations.")] = False,
    no_tile: Annotated[bool, typer.Option("--no-tile", help="Hold all logits at once.")] = False,
    device: Annotated[str, typer.Option("--device", help="cuda or cpu.")] = "cuda",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Predict the memory that `extend` takes, from a configuration alone; where it does not fit, say what does.

    Raises:
        ValueError: no such model, machine or dtype, or numbers that cannot work.
        ModuleNotFoundError: LoRA without PEFT.
    """
    from hf_longctx.cli.extend import chosen_tune
    from hf_longctx.cli.shared import one_length
    from hf_longctx.training.planner import plan as work_out

    planned = work_out(
        model,
        to=one_length("--to", to),
        tune=chosen_tune(lora=lora, lora_plus=lora_plus, full=full) or "lora-plus",
        length=None if length is None else one_length("--length", length),
        pose=pose,
        dtype=dtype,
        device_memory=device_memory,
        devices=devices,
        shard=shard,
        micro_batch=micro_batch,
        rank=rank,
        checkpointing=not no_checkpointing,
        tile=not no_tile,
        device=device,
    )
    if as_json:
        typer.echo(json.dumps(planned.to_dict()))
    else:
        _show(planned)


def _show(planned: Any) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from hf_longctx.cli.wall import size

    console, how = Console(), planned.setting

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    def mark(on: bool) -> str:
        return "" if on else "(not so planned)"

    say(
        f"{planned.model}: {planned.parameters:,} parameters, {planned.trained:,} trained ({how.tune}); a step of "
        f"{how.tokens:,} tokens for a window of {how.window:,}, on each of {how.devices} x {planned.device}"
    )
    parts = Table(box=box.SIMPLE_HEAD, title="parts", title_justify="left", padding=(0, 1, 0, 0))
    for name, justify in (("", "left"), ("bytes", "right"), ("", "left")):
        parts.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for name, count, note in (
        ("weights", planned.weights, ""),
        ("gradients", planned.gradients, ""),
        ("optimizer", planned.optimizer, "AdamW's two moments"),
        ("for sharing the work", planned.shared, ""),
        ("activations, checkpointed", planned.activations_checkpointed, mark(how.checkpointing)),
        ("activations, all kept", planned.activations_kept, mark(not how.checkpointing)),
        ("  of which attention's backward", planned.attention, ""),
        ("  of which a layer's keys and values", planned.layer_keys, ""),
        ("logits, in tiles", planned.logits_tiled, mark(how.tile)),
        ("logits, whole", planned.logits_whole, mark(not how.tile)),
        ("keys and values of the window", planned.cache, "when it is measured, before and after"),
    ):
        parts.add_row(name, size(count), note)
    console.print(parts)
    table = Table(box=box.SIMPLE_HEAD, title="held at once", title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("moment")
    table.add_column("bytes", justify="right")
    for moment, count in planned.moments.items():
        table.add_row(moment, size(count), style="bold" if moment == planned.peak else None)
    console.print(table)
    say(
        f"predicted peak {size(planned.total)} a device, of {size(planned.usable)} that tensors can have of "
        f"{size(planned.memory)}: " + ("fits" if planned.fits else "does not fit")
    )
    for lever in planned.levers:
        say(f"  with {lever.name}: {size(lever.total_bytes)}" + (", fits" if lever.fits else ""))
    say(planned.advice)
