"""`hf-longctx describe`: each layer of a model, stock or as a patch would make it."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer


def describe(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, local folder, or 'demo'.")],
    attention: Annotated[str | None, typer.Option("--attention", help="Such as window:1024+global:4.")] = None,
    rope: Annotated[str | None, typer.Option("--rope", help="Such as yarn:4.")] = None,
    own_windows: Annotated[str, typer.Option("--own-windows", help="intersect or replace.")] = "intersect",
    backend: Annotated[str, typer.Option("--backend", help="auto, tiled, dense or reference.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show what every layer sees, how it is computed, and what its cache costs. No weights are loaded.

    Raises:
        ValueError: no such model, or a patch that it refuses.
    """
    import hf_longctx as lc
    from hf_longctx.hf.loading import load_config, skeleton
    from hf_longctx.hf.saving import take_plan

    config = load_config(model)
    plan: dict[str, Any] = {"attention": attention, "rope": rope, "own_windows": own_windows, "backend": backend}
    if getattr(config, "longctx", None):
        if attention is not None or rope is not None:
            raise ValueError(
                f"model {model!r} was saved patched: leave --attention and --rope out, or unpatch it first"
            )
        plan = take_plan(config)
    network = skeleton(config)
    if plan["attention"] is not None or plan["rope"] is not None:
        lc.patch(network, **plan)
    description = lc.describe(network)
    typer.echo(json.dumps(description.to_dict()) if as_json else str(description))
