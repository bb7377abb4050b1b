"""Teaching a model its longer window, and proving that it took: `extend` is the whole of it in one call.

Everything else is reached by its module: `recipes` for the papers' settings, `corpus`, `packing` and `pose` for the
data, `tiled_loss` for a loss that never holds all logits, `adapter` for adapters that carry their RoPE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapter import load_adapter
    from .extend import extend
    from .recipes import RECIPES, Recipe, Stage

__all__ = ["RECIPES", "Recipe", "Stage", "extend", "load_adapter"]

_HOMES = {
    "RECIPES": "recipes",
    "Recipe": "recipes",
    "Stage": "recipes",
    "extend": "extend",
    "load_adapter": "adapter",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that importing the package stays cheap."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = found  # `extend` is a module too, which importing it has put in this place
    return found
