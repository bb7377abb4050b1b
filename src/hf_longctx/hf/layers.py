"""The attention layers of a model, and what a plan makes of each."""

from __future__ import annotations

from typing import Any

from hf_longctx.hf.attention import shape_key
from hf_longctx.patterns import Layers, Pattern
from hf_longctx.plan import LayerPlan, ModelShape, resolve


def plan_layers(model: Any, attention: Pattern | Layers | None, own_windows: str) -> list[LayerPlan]:
    """The plan of every layer of a model."""
    modules = attention_modules(model)
    layers, kinds, kv_heads, _ = shape_key(model.config, None)
    windows = tuple(own_window(modules[i]) if i in modules else None for i in range(layers))
    if not kinds:
        kinds = tuple("sliding_attention" if w is not None else "full_attention" for w in windows)
    return resolve(attention, ModelShape(kinds, windows, kv_heads), own_windows)


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
    code = type(module).forward.__code__
    constants = [c for const in code.co_consts for c in (const if isinstance(const, tuple) else (const,))]
    if "sliding_window" not in constants and "sliding_window" not in code.co_names:
        return None
    if hasattr(module, "sliding_window"):
        return module.sliding_window
    return getattr(module.config, "sliding_window", None)
