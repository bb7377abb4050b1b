"""`hf-longctx convert`: a model whose chosen attention layers are Mamba-2 layers, saved to a folder.

Layers are named with `--mamba`, or chosen by the damage that each does, with `--budget-kv`.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_longctx.cli.shared import Device, Model, one_length

#: The picture of the ranking, in the new model's folder.
RANKING = "layers.png"


def convert(
    model: Model,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Folder for the new model; new or empty. Without, --budget-kv ranks alone."
        ),
    ] = None,
    mamba: Annotated[
        str | None,
        typer.Option(
            "--mamba",
            help="Layers to convert and how, such as 1::4 or 1::4,init=mamba-in-llama; with --budget-kv the "
            "candidates, all by default.",
        ),
    ] = None,
    budget_kv: Annotated[
        float | None,
        typer.Option("--budget-kv", help="Share of the cache to keep, such as 0.5: layers are chosen by damage."),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option("--tokens", help="Length at which --budget-kv counts the cache. [default: the claimed window]"),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Text to choose on: kjv, prose, a folder, a file, a data set: NAME, NAME:CONFIG."),
    ] = None,
    rows: Annotated[int | None, typer.Option("--rows", help="Rows of text to choose on. [default: 8]")] = None,
    length: Annotated[str | None, typer.Option("--length", help="Tokens of such a row. [default: 512]")] = None,
    text_field: Annotated[
        str | None, typer.Option("--text-field", help="Where a row of --data has its text. [default: text]")
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Of a data set. [default: train]")] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of the text and the facts hidden in it. [default: 0]")
    ] = None,
    attention: Annotated[str | None, typer.Option("--attention", help="A pattern for the layers that stay.")] = None,
    rope: Annotated[str | None, typer.Option("--rope", help="A scaling, such as yarn:4.")] = None,
    own_windows: Annotated[str, typer.Option("--own-windows", help="intersect or replace.")] = "intersect",
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="float32, bfloat16 or float16. [default: the checkpoint's own]"),
    ] = None,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the description as one JSON document.")] = False,
) -> None:
    """Make chosen attention layers Mamba-2 layers that start from their own weights, and save the model.

    With --budget-kv and no --out, the layers are ranked and chosen, and nothing is saved. The result loads with
    hf_longctx.from_pretrained, without the original. It answers worse until it is healed: hf-longctx distill does that
    from the original model.

    Raises:
        ValueError: no such model, a plan that does not fit it, or a folder that holds something.
    """
    import hf_longctx as lc
    from hf_longctx.hf.loading import load_weights

    if mamba is None and budget_kv is None:
        raise ValueError("neither --mamba nor --budget-kv is given: name layers, such as --mamba 1::4, or a budget")
    choosing = {
        "tokens": tokens, "data": data, "rows": rows, "length": length, "text_field": text_field, "split": split,
        "seed": seed,
    }  # fmt: skip
    choosing = {name: value for name, value in choosing.items() if value is not None}
    if budget_kv is None and choosing:
        name, value = next(iter(choosing.items()))
        hint = "; that of init=random is part of --mamba, such as 1::4,init=random,seed=7" if name == "seed" else ""
        raise ValueError(
            f"--{name.replace('_', '-')} {value} is for choosing layers: give --budget-kv too, or leave it out{hint}"
        )
    if out is None and budget_kv is None:
        raise ValueError("--out is missing: name a folder for the new model, new or empty")
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out} holds something already: name a new folder, or empty it")
    kept = dtype or "auto"
    # Layers are chosen in what is exact on the device; what is saved is of the checkpoint's own dtype.
    loaded, tokenizer = lc.load_model(model, dtype=kept if budget_kv is None else dtype, device=device)
    if lc.is_patched(loaded):
        raise ValueError(f"model {model!r} was saved patched: convert the original model, with all changes at once")
    choice = None
    if budget_kv is not None:
        from hf_longctx.measure.haystack import default_haystack
        from hf_longctx.training.layer_choice import choose_layers

        given: dict[str, Any] = {"data": default_haystack(), **choosing}
        given |= {n: one_length(f"--{n}", given[n]) for n in ("tokens", "length") if n in given}
        choice = choose_layers(loaded, tokenizer, budget_kv=budget_kv, mamba=mamba or "*", **given)
        if dtype is None:
            del loaded
            loaded = load_weights(model, dtype=kept, device=device)
    plan = mamba if choice is None else choice.mamba
    lc.patch(loaded, mamba=plan, attention=attention, rope=rope, own_windows=own_windows)
    if out is not None:
        _save(loaded, tokenizer, out, None if choice is None else lambda folder: _note(choice, folder, model))
    description = lc.describe(loaded)
    if as_json:
        document = {"model": model, "out": None if out is None else str(out), "description": description.to_dict()}
        typer.echo(json.dumps(document | ({} if choice is None else {"choice": choice.to_dict()})))
        return
    if choice is not None:
        typer.echo(f"{choice}\n")
    typer.echo(str(description))
    if choice is not None and out is not None:
        drawn = (out / RANKING).is_file()
        note = 'no plot: matplotlib is missing; pip install "hf_longctx[report]"'
        typer.echo(f"plot: {out / RANKING}" if drawn else note)
    if choice is not None:
        given = {"attention": attention, "rope": rope, "own-windows": own_windows if attention else None}
        more = "".join(f" --{name} '{value}'" for name, value in given.items() if value is not None)
        typer.echo(f"heal it: hf-longctx distill {model} --mamba {choice.mamba}{more} --data ... --out ...")
    if out is None:
        typer.echo("nothing is saved: give --out for the model and a plot of the ranking")
    else:
        typer.echo(f"saved to {out}: load it with hf_longctx.from_pretrained({str(out)!r})")


def _note(choice: Any, folder: Path, model: str) -> None:
    """Keep the ranking with the model: as JSON, and as a picture where matplotlib is installed."""
    (folder / "layers.json").write_text(json.dumps(choice.to_dict(), indent=2) + "\n", encoding="utf-8")
    if importlib.util.find_spec("matplotlib") is not None:
        from hf_longctx.training.layer_plot import draw

        draw(choice, folder / RANKING, f"{model}: what converting one layer alone breaks")


def _save(model: Any, tokenizer: Any, out: Path, also: Callable[[Path], None] | None = None) -> None:
    """Write a folder aside and put it in place, so that a stopped conversion leaves nothing that looks finished."""
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        if also is not None:
            also(aside)
        aside.chmod(0o755)
        if out.exists():
            out.rmdir()
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
