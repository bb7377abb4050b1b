"""`hf-longctx convert`: a model whose chosen attention layers are Mamba-2 layers, saved to a folder."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_longctx.cli.shared import Device, Dtype, Model


def convert(
    model: Model,
    mamba: Annotated[
        str, typer.Option("--mamba", help="Layers to convert and how, such as 1::4 or 1::4,init=mamba-in-llama.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the new model; new or empty.")],
    attention: Annotated[str | None, typer.Option("--attention", help="A pattern for the layers that stay.")] = None,
    rope: Annotated[str | None, typer.Option("--rope", help="A scaling, such as yarn:4.")] = None,
    own_windows: Annotated[str, typer.Option("--own-windows", help="intersect or replace.")] = "intersect",
    dtype: Dtype = None,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the description as one JSON document.")] = False,
) -> None:
    """Make chosen attention layers Mamba-2 layers that start from their own weights, and save the model.

    The result loads with hf_longctx.from_pretrained, without the original. It answers worse until it is trained.

    Raises:
        ValueError: no such model, a plan that does not fit it, or a folder that holds something.
    """
    import hf_longctx as lc

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out} holds something already: name a new folder, or empty it")
    loaded, tokenizer = lc.load_model(model, dtype=dtype, device=device)
    if lc.is_patched(loaded):
        raise ValueError(f"model {model!r} was saved patched: convert the original model, with all changes at once")
    lc.patch(loaded, mamba=mamba, attention=attention, rope=rope, own_windows=own_windows)
    _save(loaded, tokenizer, out)
    description = lc.describe(loaded)
    if as_json:
        typer.echo(json.dumps({"model": model, "out": str(out), "description": description.to_dict()}))
        return
    typer.echo(str(description))
    typer.echo(f"saved to {out}: load it with hf_longctx.from_pretrained({str(out)!r})")


def _save(model: Any, tokenizer: Any, out: Path) -> None:
    """Write a folder aside and put it in place, so that a stopped conversion leaves nothing that looks finished."""
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        aside.chmod(0o755)
        if out.exists():
            out.rmdir()
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
