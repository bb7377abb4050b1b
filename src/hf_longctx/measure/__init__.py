"""Measuring what a model really recalls over its context, variant by variant.

`run_needle` is the needle test, `run_tasks` asks other tasks at given lengths, `run_effective` looks for the longest
that works, and `run_cost` measures time and memory. Everything else is reached by its module:
`haystack` and `needles` for the material, `prompts`, `placement` and `grid` for what is asked, `probe` for how,
`store` and `runs` for the files, `stats` for the numbers, `report` for the page (its `sections`), `compare` for two
runs, `cost_model` and `wall` for costs by formula, and `published` for other people's figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .climb import run_effective
    from .cost import run_cost
    from .evaluate import run_tasks
    from .needle import run_needle
    from .variants import Variant, parse_variant

__all__ = ["Variant", "parse_variant", "run_cost", "run_effective", "run_needle", "run_tasks"]

_HOMES = {
    "Variant": "variants",
    "parse_variant": "variants",
    "run_cost": "cost",
    "run_effective": "climb",
    "run_needle": "needle",
    "run_tasks": "evaluate",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that importing the package stays cheap."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
