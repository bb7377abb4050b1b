"""Teaching a model what a patch made of it, each in one call: `extend` a longer window, `distill` Mamba-2 layers.

`choose_layers` says which layers to convert, and `plan` beforehand whether training fits a device. After training of
your own on a patched model, `save_adapter` keeps its RoPE with the adapter (`load_adapter` insists on it), and
`settle_rope` makes the RoPE the model's own before a whole model is saved. Everything else is reached by its module:
`recipes` for the papers' settings, `corpus`, `packing` and `pose` for the data, `tiled_loss` for a loss that never
holds all logits, `guards` for what stops a run that has gone wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_longctx.hf.adapters import load_adapter, save_adapter
    from hf_longctx.hf.saving import settle_rope

    from .distillation import distill
    from .extension import extend
    from .layer_choice import choose_layers
    from .planner import TrainingPlan, plan
    from .recipes import RECIPES, Recipe, Stage

__all__ = [
    "RECIPES",
    "Recipe",
    "Stage",
    "TrainingPlan",
    "choose_layers",
    "distill",
    "extend",
    "load_adapter",
    "plan",
    "save_adapter",
    "settle_rope",
]

_HOMES = {
    "RECIPES": "recipes",
    "Recipe": "recipes",
    "Stage": "recipes",
    "TrainingPlan": "planner",
    "choose_layers": "layer_choice",
    "distill": "distillation",
    "extend": "extension",
    "load_adapter": "..hf.adapters",
    "plan": "planner",
    "save_adapter": "..hf.adapters",
    "settle_rope": "..hf.saving",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that importing the package stays cheap."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    home = _HOMES[name]
    return getattr(import_module(home if home.startswith(".") else f".{home}", __name__), name)
