"""Tables that fit the terminal: rather a column less than a column that cannot be read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


def fitting(console: Console, tables: Iterable[RenderableType]) -> RenderableType:
    """The first table that the console shows without folding or cutting a cell.

    Args:
        console: where it will be printed.
        tables: the same table, or group of tables, from its widest form to its narrowest; each is made only if needed.

    Returns:
        The first that fits, or the last.

    Raises:
        ValueError: no tables.

    >>> from rich.console import Console
    >>> from rich.table import Table
    >>> wide, narrow = Table("a heading of 24 letters."), Table("short")
    >>> [fitting(Console(width=width), [wide, narrow]) is wide for width in (80, 20, 5)]
    [True, False, False]
    """
    from rich.measure import Measurement

    laid = None
    for laid in tables:
        if Measurement.get(console, console.options.update(width=10_000), laid).maximum <= console.width:
            break
    if laid is None:
        raise ValueError("tables is empty: give at least one")
    return laid
