"""The attention layers of a model, and what a plan makes of each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from hf_longctx.hf.layer_sizes import kv_heads, layer_config
from hf_longctx.hf.loading import default_device
from hf_longctx.hf.windows import own_window
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
    from hf_longctx.hf.mixers import mamba_layers

    modules = attention_modules(model)
    every = range(int(model.config.num_hidden_layers))
    heads = tuple(kv_heads(layer_config(model.config, i), modules.get(i)) for i in every)
    kinds = tuple(getattr(model.config, "layer_types", None) or ())
    mamba = mamba_layers(model.config) if mamba is None else mamba
    windows = tuple(own_window(modules[i]) if i in modules and i not in mamba else None for i in every)
    shape = ModelShape(kinds_of(kinds, windows, mamba), windows, max(heads), heads)
    return resolve(attention, shape, own_windows)


def attention_modules(model: Any) -> dict[int, Any]:
    """The self-attention module of each layer."""
    return {
        int(module.layer_idx): module
        for name, module in model.named_modules()
        if getattr(module, "layer_idx", None) is not None and type(module).__name__.endswith("Attention")
    }


def device_of(model: Any) -> torch.device:
    """Where a model computes; one without memory as it would here."""
    if model.device.type != "meta":
        return model.device
    return default_device()


def has_sinks(module: Any) -> bool:
    """Whether an attention module has learned sinks, one for each head, as gpt-oss does."""
    return getattr(module, "sinks", None) is not None


def key_sources(plans: Sequence[LayerPlan], modules: Mapping[int, Any]) -> dict[int, LayerPlan]:
    """Of each layer the one whose keys and values it reads: its own, or those of the last of its kind that has some.

    Gemma 3n and 4 have layers without any of their own.
    """
    last: dict[str, LayerPlan] = {}
    found = {}
    for layer in plans:
        if not getattr(modules.get(layer.index), "is_kv_shared_layer", False):
            last[layer.kind] = layer
        if layer.kind in last:
            found[layer.index] = last[layer.kind]
    return found
