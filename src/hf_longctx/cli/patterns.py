"""`hf-longctx patterns`: every pattern and preset, what it sees and costs, and its picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hf_longctx.measure.gallery import Picture
    from hf_longctx.patterns import Pattern


def patterns(
    text: Annotated[
        str | None, typer.Argument(metavar="[PATTERN]", help="Draw only this one, such as window:6+global:2.")
    ] = None,
    draw: Annotated[bool, typer.Option("--draw", help="Draw every pattern in the terminal.")] = False,
    size: Annotated[int, typer.Option("--size", help="Tokens to draw.")] = 24,
    out: Annotated[Path | None, typer.Option("--out", help="Write the pictures to a .png or .html file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List attention patterns with their rule, source, visible share and cache, or draw them.

    Raises:
        ValueError: a text that is no pattern, a size below 1, or a file of another kind.
    """
    from hf_longctx.measure import gallery
    from hf_longctx.patterns.text import load_others

    load_others()
    if size < 1:
        raise ValueError(f"--size is {size}: it must be at least 1")
    drawn = gallery.pictures(None if text is None else _asked(text), size)
    if out is not None:
        gallery.write(out, drawn)
    if as_json:
        listed = [gallery.to_dict(one) for one in gallery.facts()] if text is None else []
        typer.echo(json.dumps({"patterns": listed, "pictures": [gallery.to_dict(one) for one in drawn]}))
    elif out is not None:
        typer.echo(f"picture: {out}")
    elif draw or text is not None:
        _draw(drawn)
    else:
        _list()


def _asked(text: str) -> list[Pattern]:
    from hf_longctx.patterns import Layers, parse

    parsed = parse(text)
    return list(dict.fromkeys(p for _, p in parsed.plan)) if isinstance(parsed, Layers) else [parsed]


def _draw(drawn: Sequence[Picture]) -> None:
    from rich.columns import Columns
    from rich.console import Console
    from rich.panel import Panel

    panels = [
        Panel.fit(
            "\n".join("".join("■ " if seen else "· " for seen in row) for row in one.grid),
            title=one.text,
            subtitle=one.caption,
        )
        for one in drawn
    ]
    Console().print(Columns(panels))


def _list() -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from hf_longctx.measure import gallery
    from hf_longctx.measure.heatmap import length_label
    from hf_longctx.patterns.share import percent

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption_justify="left")
    table.add_column("pattern", overflow="fold", ratio=3)
    table.add_column("sees k when (d = q - k)", ratio=4)
    for n in gallery.LENGTHS:
        table.add_column(length_label(n), justify="right", no_wrap=True)
    table.add_column("cache can shrink", ratio=2)
    table.add_column("source; used by", ratio=5, style="dim")
    for one in gallery.facts():
        shares = [percent(one.shares[n]) for n in gallery.LENGTHS]
        users = "; ".join(part for part in (one.source, one.used_by) if part)
        name = one.text if one.text.split(":")[0] == one.name else f"{one.name} = {one.text}"
        table.add_row(name, one.sees, *shares, gallery.kept_text(one.keeps), users)
    table.caption = "lengths: visible pairs as a share of causal attention; --draw or --out gallery.png shows pictures"
    Console().print(table, highlight=False)
