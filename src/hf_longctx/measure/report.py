"""Write the report of a run's folder: the page and the picture."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hf_longctx.measure import heatmap, runs
from hf_longctx.measure.finding import effective_text, finding

__all__ = ["attempt", "effective_text", "finding", "load", "require", "write"]

logger = logging.getLogger(__name__)

PAGE = "report.html"
"""The page's file in a run's folder."""


def write(run: Path, *, overlay: str | None = None, memory: str = "h100") -> list[Path]:
    """Write ``report.html``, and ``heatmap.png`` for a needle run, into a run's folder, replacing older ones.

    Each file is replaced in one step when it is complete.

    Args:
        run: The folder of a needle run, a run of tasks, a cost run, both of a model, or a suite of these; finished or
            not.
        overlay: Name of a published model to show beside it, as `hf-longctx models` lists them.
        memory: Machine, or size, that is drawn beside what lengths take by formula, as for `hf-longctx wall`.

    Returns:
        The paths of what was written.

    Raises:
        ImportError: jinja2 or matplotlib is not installed; nothing has been written.
        ValueError: The folder has no rows, or its files cannot be read as a run; or there is no such published model
            or machine.
    """
    from hf_longctx.measure.machines import machine
    from hf_longctx.measure.published import one_model

    rows = one_model(overlay) if overlay is not None else []
    limit = machine(memory)
    require()
    from hf_longctx.measure.page import render

    found = runs.read(run)
    html = render(found, rows, machine=limit)
    written = [run / PAGE]
    needles = [part for part in found.parts if part.kind == "needle"]
    if needles and not (run / runs.SUITE).is_file():
        written.append(run / "heatmap.png")
        heatmap.draw(needles[0].summary, written[1])
    with heatmap.replacing(written[0]) as partial:
        partial.write_text(html, encoding="utf-8")
    return written


def attempt(run: Path) -> None:
    """Write the report at the end of a run; without the packages that it needs, say so and go on."""
    try:
        write(run)
    except ImportError as error:
        logger.warning("no report page: %s", error)


def require() -> None:
    """Refuse to begin what needs a package that is missing.

    Raises:
        ImportError: jinja2 or matplotlib is not installed.
    """
    lacking = [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]
    if lacking:
        raise ImportError(f'the report needs {" and ".join(lacking)}: pip install "hf_longctx[report]"')


def load(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read the recall part of a run: its summary, with the statistics counted afresh from the rows, and the rows.

    Args:
        run: The folder of a needle run or a run of tasks.

    Returns:
        ``(summary, rows)``, as `runs.Part` holds them.

    Raises:
        ValueError: As `runs.read`, or for a folder that holds no questions.
    """
    for part in runs.read(run).parts:
        if part.recall:
            return dict(part.summary), [dict(row) for row in part.rows]
    raise ValueError(f"run={str(run)!r} holds no answers, only costs: give the folder of a needle run or of tasks")
