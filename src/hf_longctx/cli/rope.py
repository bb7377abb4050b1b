"""`hf-longctx rope`: what a RoPE scaling does to each rotary pair of a model, as a table, a plot or JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_longctx.cli.shared import check_plot

if TYPE_CHECKING:
    from rich.table import Table

    from hf_longctx.hf.rotary import RopeGeometry
    from hf_longctx.rope import Scaling

ROWS = 17
"""Rows of the table; a larger rotary dimension is sampled evenly, ends included."""

# Okabe and Ito's colours, told apart by every kind of colour vision.
_BLUE, _VERMILLION, _GREY = "#0072B2", "#D55E00", "#555555"


def rope(
    model: Annotated[str, typer.Argument(help="Hub id, local folder, or 'demo'; only its config is read.")],
    rope: Annotated[str, typer.Option("--rope", help="The scaling: yarn:4, linear:2, ntk:2, yarn:to=32k, none, ...")],
    length: Annotated[
        str | None,
        typer.Option("--length", help="Sequence length to show, such as 32k, where the scaling follows it."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Draw the pairs there as well (PNG).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show each rotary pair's wavelength before and after a scaling, the trained window marked."""
    from hf_longctx.hf.loading import load_config
    from hf_longctx.hf.rotary import plan
    from hf_longctx.rope.text import read_length

    try:
        tokens = None if length is None else read_length(length)
    except ValueError as error:
        raise ValueError(f"--length {error}") from None
    change = plan(load_config(model), rope)
    if out is not None:
        check_plot("--out", out)
    document = view(model, change.geometry, change.scaling, tokens)
    document["plot"] = None if out is None else str(out)
    if out is not None:
        plot(document, out)
    if as_json:
        typer.echo(json.dumps(document))
        return

    from rich.console import Console

    console = Console()
    console.print(table(document))
    for line in summary(document):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if out is not None:
        console.print(f"plot: {out}", highlight=False, markup=False, soft_wrap=True)


def view(model: str, geometry: RopeGeometry, scaling: Scaling, length: int | None = None) -> dict[str, Any]:
    """Collect what the command shows.

    Args:
        model: Name of the model, for titles.
        geometry: The RoPE numbers of its config.
        scaling: The scaling to look at, resolved.
        length: Sequence length in tokens to show for a scaling that follows it. By default its new window; dynamic NTK
            names none, so four times the trained length stands for it.

    Returns:
        A document of JSON types; lengths and wavelengths are in tokens.

    Raises:
        ValueError: If the scaling does not fit the model.
    """
    from hf_longctx.rope import NoScaling, unseen, wavelengths

    before = geometry.current or NoScaling()
    numbers = (geometry.dim, geometry.base, geometry.trained)
    window = scaling.max_positions(geometry.trained, geometry.max_positions)
    if length is None:
        length = window if window > geometry.trained or not scaling.length_dependent else 4 * geometry.trained
    return {
        "model": model,
        "rope": str(scaling),
        "before": str(before),
        "dim": geometry.dim,
        "base": geometry.base,
        "trained": geometry.trained,
        "max_positions": {"before": geometry.max_positions, "after": window},
        "length": length,
        "length_dependent": scaling.length_dependent,
        "attention_scaling": {
            "before": before.attention_scaling(geometry.trained),
            "after": scaling.attention_scaling(geometry.trained),
        },
        "unseen": {"before": unseen(before, *numbers, length), "after": unseen(scaling, *numbers, length)},
        "pairs": [asdict(pair) for pair in wavelengths(before, scaling, *numbers, length)],
    }


def sampled(count: int, rows: int = ROWS) -> list[int]:
    """Choose at most `rows` of `count` indices, evenly spaced, first and last included.

    >>> sampled(4), sampled(64, 5)
    ([0, 1, 2, 3], [0, 16, 32, 47, 63])
    """
    if count <= rows:
        return list(range(count))
    return [round(row * (count - 1) / (rows - 1)) for row in range(rows)]


def table(document: dict[str, Any]) -> Table:
    """Lay out a sample of the pairs; those that make less than a turn over the trained window are dim."""
    from rich import box
    from rich.table import Table

    laid = Table(
        title=f"{document['model']}: RoPE {_short(document['before'])} to {_short(document['rope'])}",
        caption="wavelength: tokens in a full turn; turns: over the trained window",
        box=box.SIMPLE_HEAD,
    )
    for heading in ("pair", "wavelength before", "after", "ratio", "turns before", "after"):
        laid.add_column(heading, justify="right")
    for index in sampled(len(document["pairs"])):
        pair = document["pairs"][index]
        laid.add_row(
            str(pair["pair"]),
            _tokens(pair["before"]),
            _tokens(pair["after"]),
            f"{pair['ratio']:.3f}",
            f"{pair['turns_before']:,.2f}",
            f"{pair['turns_after']:,.2f}",
            style="dim" if pair["turns_before"] < 1 else None,
        )
    return laid


def summary(document: dict[str, Any]) -> list[str]:
    """Say in a few lines what the table does not: windows, temperature, and pairs that leave what training showed."""
    pairs, length = len(document["pairs"]), document["length"]
    windows, attention, unseen = document["max_positions"], document["attention_scaling"], document["unseen"]
    lines = [
        f"rotary dim {document['dim']}, theta {document['base']:g}, trained on {document['trained']:,} tokens; "
        f"window {windows['before']:,} before, {windows['after']:,} after",
        f"cos and sin times {attention['before']:.6g} before, {attention['after']:.6g} after",
        f"pairs that meet unseen angles within {length:,} tokens: "
        f"{len(unseen['before'])} of {pairs} before, {len(unseen['after'])} after",
    ]
    if document["length_dependent"]:
        lines.append(f"this scaling follows the length: shown for {length:,} tokens (--length chooses another)")
    return lines


def _short(text: str, limit: int = 40) -> str:
    """Cut what would overflow a title: a LongRoPE spells two numbers for each pair."""
    return text if len(text) <= limit else text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _tokens(count: float) -> str:
    return f"{count:,.0f}" if count >= 1000 else f"{count:.1f}"


def plot(document: dict[str, Any], path: Path) -> None:
    """Draw wavelength against pair, before and after, with the trained window and the new one as lines.

    Args:
        document: What `view` returned.
        path: Where the image goes; its ending chooses the format.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
        ValueError: If the ending is no image format.
    """
    from matplotlib.figure import Figure

    before = [pair["before"] for pair in document["pairs"]]
    after = [pair["after"] for pair in document["pairs"]]
    trained, length = document["trained"], document["length"]
    last = len(before) - 1
    every = max(1, last // 12)

    figure = Figure(figsize=(8.5, 5.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.set_yscale("log")
    axes.fill_between(range(len(before)), before, after, color=_VERMILLION, alpha=0.12, linewidth=0)
    curves = [(before, _BLUE, "-", "o", f"before ({_short(document['before'])})")]
    curves.append((after, _VERMILLION, "--", "s", f"after ({_short(document['rope'])})"))
    for curve, colour, dashes, marker, name in curves:
        axes.plot(curve, dashes, color=colour, linewidth=2, label=name, marker=marker, markersize=5, markevery=every)
    lines = [(trained, "trained window", "-", -11)]
    if length != trained:
        name = "new window" if document["max_positions"]["after"] == length else "sequence shown"
        lines.append((length, name, ":", 4))
    for tokens, name, dashes, below in lines:
        axes.axhline(tokens, color=_GREY, linewidth=1.2, linestyle=dashes, zorder=1)
        label = f"{name} {tokens:,}"
        axes.annotate(label, (0, tokens), (4, below), textcoords="offset points", color=_GREY, fontsize=9)
    axes.set_xlim(-0.02 * last, 1.02 * last or 1)
    axes.set_xlabel("rotary pair (fast to slow)")
    axes.set_ylabel("wavelength (tokens in a full turn)")
    axes.set_title(
        f"RoPE wavelengths of {document['model']}: {_short(document['rope'])}", loc="left", fontsize=12, pad=24
    )
    axes.text(
        0,
        1.02,
        f"rotary dim {document['dim']}, theta {document['base']:g}, cos and sin x "
        f"{document['attention_scaling']['after']:.4g}; above the trained window a pair has not made a full turn",
        transform=axes.transAxes,
        fontsize=8.5,
        color=_GREY,
    )
    axes.grid(True, which="major", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path)
