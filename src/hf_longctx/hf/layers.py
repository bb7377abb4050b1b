"""The attention layers of a model, and what a plan makes of each."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

from hf_longctx.hf.attention import shape_key
from hf_longctx.patterns import Layers, Pattern
from hf_longctx.plan import LayerPlan, ModelShape, kinds_of, resolve


def plan_layers(
    model: Any, attention: Pattern | Layers | None, own_windows: str, mamba: Collection[int] | None = None
) -> list[LayerPlan]:
    """The plan of every layer of a model.

    Args:
        model: the model.
        attention: as for `plan.resolve`.
        own_windows: likewise.
        mamba: layers that are to be Mamba layers; None reads the plan that the model carries.
    """
    modules = attention_modules(model)
    layers, kinds, kv_heads, _, carried = shape_key(model.config, None)
    mamba = carried if mamba is None else mamba
    windows = tuple(own_window(modules[i]) if i in modules and i not in mamba else None for i in range(layers))
    return resolve(attention, ModelShape(kinds_of(kinds, windows, mamba), windows, kv_heads), own_windows)


def attention_modules(model: Any) -> dict[int, Any]:
    """The self-attention module of each layer."""
    return {
        int(module.layer_idx): module
        for name, module in model.named_modules()
        if getattr(module, "layer_idx", None) is not None and type(module).__name__.endswith("Attention")
    }


def own_window(module: Any) -> int | None:
    """The window that an attention module passes to its attention function, or None.

    Its class must really pass one: some configs carry `sliding_window` although their model never reads it.
    """
    code = inspect.unwrap(type(module).forward).__code__
    constants = [c for const in code.co_consts for c in (const if isinstance(const, tuple) else (const,))]
    if "sliding_window" not in constants and "sliding_window" not in code.co_names:
        return None
    if hasattr(module, "sliding_window"):
        return module.sliding_window
    return getattr(module.config, "sliding_window", None)
