"""`hf-longctx report RUN`: write a run's page again; `report RUN_A RUN_B`: compare two runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hf_longctx.cli.shared import FailUnder, check_place, end


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that another command wrote with --out.")],
    other: Annotated[Path | None, typer.Argument(metavar="[RUN_B]", help="A second run, to compare with.")] = None,
    overlay: Annotated[
        str | None, typer.Option("--overlay", help="Published model to draw beside it, as in `hf-longctx models`.")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option("--memory", help="Machine of the memory wall, as for `hf-longctx wall`: 24GB. [default: h100]"),
    ] = None,
    page: Annotated[
        Path | None, typer.Option("--page", help="File of the comparison. [default: RUN_B/comparison.html]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    fail_under: FailUnder = None,
) -> None:
    """Write report.html of a run, finished or not, and print its path; or compare two runs.

    Raises:
        ImportError: jinja2 or matplotlib is not installed.
        ValueError: A folder is no run, or has no rows yet; or there is no such published model or machine.
        typer.Exit: With 1, if what --fail-under asks for is not reached.
    """
    from hf_longctx.measure import gate, runs
    from hf_longctx.measure.report import write

    limits = gate.parse(fail_under or [])
    if other is not None:
        if overlay is not None:
            raise ValueError(f"--overlay {overlay!r}: a comparison draws no published model; give one RUN")
        if memory is not None:
            raise ValueError(f"--memory {memory!r}: a comparison draws no memory wall; give one RUN")
        if limits:
            raise ValueError(f"--fail-under {fail_under[0]!r}: a comparison has no gate; give one RUN")  # type: ignore[index]
        _compare(run, other, page or other / "comparison.html", as_json)
        return
    if page is not None:
        raise ValueError(f"--page {str(page)!r}: it is for comparing two runs; a run's page is RUN/report.html")
    missed = gate.misses(run, limits)  # first: what the run does not have is refused before a page is written
    written = write(run, overlay=overlay, memory=memory or "h100")
    if as_json:
        parts = {part.name: dict(part.summary) for part in runs.read(run).parts}
        typer.echo(json.dumps({"written": [str(path) for path in written], "parts": parts}, ensure_ascii=False))
    else:
        for path in written:
            typer.echo(path)
    end(missed)


def _compare(run: Path, other: Path, page: Path, as_json: bool) -> None:
    from hf_longctx.measure import compare_page, runs
    from hf_longctx.measure.compare import compare

    if page.parent != other:
        check_place("--page", page)
    document = compare(runs.read(run), runs.read(other))
    compare_page.write(document, page)
    if as_json:
        typer.echo(json.dumps(document | {"page": str(page)}, ensure_ascii=False))
        return
    from rich.console import Console

    console = Console()
    console.print(compare_page.terminal(document))
    console.print(f"page: {page}", highlight=False, markup=False, soft_wrap=True)
