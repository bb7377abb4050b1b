"""How a distillation went, as one picture: the loss of each stage by step, and what came of it."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

from hf_longctx.measure.heatmap import replacing

from .distill_card import quality_rows

logger = logging.getLogger(__name__)

_LINE, _POINTS = "#0072B2", "#9fc6e0"  # Okabe and Ito's blue, and a pale one
#: The mean is over so many steps, since single ones differ by their text.
_SMOOTHED = 10


def draw_if_possible(record: dict[str, Any], path: Path) -> str | None:
    """Draw, where matplotlib is installed; the name of the file, None without one."""
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning('no picture of the losses: matplotlib is missing; pip install "hf_longctx[report]"')
        return None
    draw(record, path)
    return path.name


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw a panel for each stage, and the table of quality below.

    Args:
        record: of a run, as `distill.json` has it.
        path: where the picture goes.
    """
    from matplotlib.figure import Figure

    stages, (head, rows) = record["stages"], quality_rows(record)
    figure = Figure(figsize=(max(4.6 * len(stages), 9), 5.6), dpi=130, layout="constrained")
    settings = record["settings"]
    figure.suptitle(f"{settings['model']}, mamba {settings['mamba']}: healing", x=0.01, ha="left", fontsize=12)
    grid = figure.add_gridspec(2, len(stages), height_ratios=(3, 1))
    for index, stage in enumerate(stages):
        axes = figure.add_subplot(grid[0, index])
        steps, losses = zip(*((row["step"], row["loss"]) for row in stage["log"]))
        axes.plot(steps, losses, ".", color=_POINTS, markersize=4)
        axes.plot(steps, smoothed(losses), color=_LINE, linewidth=1.8)
        axes.set_title(f"{index + 1}. {stage['objective']}", loc="left", fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    below = figure.add_subplot(grid[1, :])
    below.axis("off")
    if rows:
        table = below.table(rows, colLabels=head, loc="center", cellLoc="right", edges="horizontal")
        table.auto_set_font_size(False)
        table.set_fontsize(9)
        table.scale(1, 1.3)
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


def smoothed(values: tuple[float, ...]) -> list[float]:
    """The mean of each value and those before it, ten at most.

    >>> smoothed((4.0, 2.0, 0.0))
    [4.0, 3.0, 2.0]
    """
    spans = [values[max(0, index - _SMOOTHED + 1) : index + 1] for index in range(len(values))]
    return [sum(span) / len(span) for span in spans]
