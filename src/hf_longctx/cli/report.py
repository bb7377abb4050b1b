"""``hf-longctx report RUN``: write a run's page and picture again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_longctx.cli.shared import FailUnder, gated


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `hf-longctx needle --out` wrote.")],
    fail_under: FailUnder = None,
) -> None:
    """Write report.html and heatmap.png of a run, finished or not, and print their paths.

    Raises:
        ImportError: jinja2 or matplotlib is not installed.
        ValueError: The folder is no run, or has no rows yet.
        typer.Exit: With 1, if what --fail-under asks for is not reached.
    """
    from hf_longctx.measure.gate import parse
    from hf_longctx.measure.report import write

    limits = parse(fail_under or [])
    for path in write(run):
        typer.echo(path)
    gated(run, limits)
