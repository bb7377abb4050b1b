"""`hf-longctx patterns`: every pattern drawn, and the named ones from the literature."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def patterns(
    text: Annotated[
        str | None, typer.Argument(metavar="[PATTERN]", help="Draw only this one, such as window:6+global:2.")
    ] = None,
    size: Annotated[int, typer.Option("--size", help="Tokens to draw.")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Draw attention patterns: a row per query, a filled square where a key is seen.

    Raises:
        ValueError: a text that is no pattern, or a size below 1.
    """
    from rich.columns import Columns
    from rich.console import Console
    from rich.panel import Panel

    from hf_longctx.patterns import Layers, Pattern, gallery, parse, presets

    if size < 1:
        raise ValueError(f"--size is {size}: it must be at least 1")
    drawn: list[Pattern]
    if text is None:
        drawn = [pattern for _, pattern in gallery()]
    else:
        parsed = parse(text)
        drawn = list(dict.fromkeys(p for _, p in parsed.plan)) if isinstance(parsed, Layers) else [parsed]
    if as_json:
        document = {
            "patterns": [
                {"text": str(p), "share": p.count(size) / (size * (size + 1) / 2), "grid": p.grid(size).splitlines()}
                for p in drawn
            ],
            "presets": presets(),
        }
        typer.echo(json.dumps(document))
        return
    console = Console()
    pictures = [
        Panel.fit(
            p.grid(size).replace(" ", "").replace("#", "■ ").replace(".", "· "),
            title=str(p),
            subtitle=f"{p.count(size) / (size * (size + 1) / 2):.0%} of causal",
        )
        for p in drawn
    ]
    console.print(Columns(pictures))
    if text is None:
        for name, preset in presets().items():
            console.print(f"{name:<12} {preset}", highlight=False)
