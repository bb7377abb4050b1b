"""Tasks: what is hidden in a long prompt and asked for, one task a file.

RULER's thirteen by their published definitions (Hsieh et al. 2024, arXiv 2404.06654) and four of other kinds. A new
task is one new file in this folder with one function under `@task`; the command line and the tests find it there.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil

from .base import REGISTRY, Prompt, Task, task
from .draft import TooShort, Unfit

__all__ = ["REGISTRY", "RULER", "Prompt", "Task", "TooShort", "Unfit", "find", "names", "task"]

for _module in sorted(found.name for found in pkgutil.iter_modules(__path__)):
    importlib.import_module(f"{__name__}.{_module}")

RULER = tuple(name for name, one in REGISTRY.items() if one.source.startswith("RULER"))
"""The names of RULER's thirteen."""


def names() -> tuple[str, ...]:
    """The name of every task, in alphabetical order.

    >>> len(RULER), set(RULER) < set(names())
    (13, True)
    """
    return tuple(sorted(REGISTRY))


def find(name: str) -> Task:
    """The task of that name.

    Args:
        name: one of `names()`.

    Returns:
        The task.

    Raises:
        ValueError: for an unknown name, with the nearest one.

    >>> find("passkey").budget
    16
    """
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, REGISTRY, n=1)
        hint = f": did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"unknown task {name!r}{hint} Tasks are {', '.join(names())}")
    return REGISTRY[name]
