"""`hf-longctx describe`: each layer of a model, stock or as a patch would make it."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer


def describe(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, local folder, or 'demo'.")],
    attention: Annotated[str | None, typer.Option("--attention", help="Such as window:1024+global:4.")] = None,
    rope: Annotated[str | None, typer.Option("--rope", help="Such as yarn:4.")] = None,
    mamba: Annotated[str | None, typer.Option("--mamba", help="Layers to be Mamba-2 layers, such as 1::4.")] = None,
    own_windows: Annotated[str, typer.Option("--own-windows", help="intersect or replace.")] = "intersect",
    backend: Annotated[str, typer.Option("--backend", help="auto, tiled, flex, flash, dense or reference.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show what every layer sees, how it is computed, and what its cache costs. No weights are loaded.

    Raises:
        ValueError: no such model, or a patch that it refuses.
    """
    import hf_longctx as lc
    from hf_longctx.hf.loading import load_config, skeleton
    from hf_longctx.hf.saving import planned_skeleton

    config = load_config(model)
    asked: dict[str, Any] = {"attention": attention, "rope": rope, "mamba": mamba}
    given = any(value is not None for value in asked.values())
    how = {"own_windows": own_windows, "backend": backend}
    changed = how != {"own_windows": "intersect", "backend": "auto"}
    if getattr(config, "longctx", None):
        if given or changed:
            raise ValueError(
                f"model {model!r} was saved patched: leave --attention, --rope, --mamba, --own-windows and --backend "
                "out, or unpatch it first"
            )
        network = planned_skeleton(config)
    else:
        if changed and not given:
            raise ValueError("--own-windows and --backend are for a pattern: give --attention, or leave them out")
        network = skeleton(config)
        if given:
            lc.patch(network, **asked, **how)
    description = lc.describe(network)
    typer.echo(json.dumps(description.to_dict()) if as_json else str(description))
