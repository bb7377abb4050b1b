"""The sections of the report page, one file each, in the order of the page.

A section is a module with a ``TITLE`` and a ``build``, which gives what ``templates/sections/NAME.html.j2`` shows, or
None where the section does not apply. `LEAD`, `WALL` and `TAIL` look at the whole run, `PARTS` at one part of it.
All they hand on is text, numbers and colours: the template escapes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from . import (
    again,
    card,
    control,
    cost,
    curves,
    damage,
    effective,
    invalid,
    losses,
    maps,
    misses,
    pairs,
    pareto,
    plans,
    published,
    spent,
    wall,
)

LEAD = (pareto,)
PARTS = (maps, curves, effective, pairs, control, damage, losses, cost, misses, invalid, plans, spent, card)
WALL = (wall,)
TAIL = (published, again)


def build(modules: Sequence[ModuleType], subject: Any, beside: Any) -> list[dict[str, Any]]:
    """What the sections that apply show.

    Args:
        modules: `LEAD`, `PARTS`, `WALL` or `TAIL`.
        subject: a `runs.Run`, or for `PARTS` a `runs.Part`.
        beside: rows of `published.published` to show beside it; for `WALL` the machine whose memory is drawn.

    Returns:
        Per section ``name``, ``title``, ``template`` and ``data``.
    """
    found = []
    for module in modules:
        data = module.build(subject, beside)
        if data is not None:
            name = module.__name__.rpartition(".")[2]
            found.append({"name": name, "title": module.TITLE, "template": f"sections/{name}.html.j2", "data": data})
    return found
