"""The cache that a plan needs: layers that replace their own window must keep what the pattern still sees."""

from __future__ import annotations

from typing import Any

from hf_longctx.hf.attention import layer_plan, shape_key, stored_plan


def ready(decoder: Any, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a decoder's forward with a cache that fits the plan.

    An empty dynamic cache gets full layers where a window is replaced; a cache that is to be made is made here, so
    that it can be seen by whoever comes after.

    Raises:
        ValueError: a preallocated cache whose layers roll over the replaced window.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticSlidingWindowLayer

    config = decoder.config
    cache = kwargs.get("past_key_values")
    wanted = kwargs.get("use_cache")
    if cache is None and not decoder.training and (config.use_cache if wanted is None else wanted):
        cache = DynamicCache(config=config)
        kwargs = {**kwargs, "past_key_values": cache, "use_cache": True}
    if cache is None or cache.get_seq_length() or not _replaces(config):
        return kwargs
    for index, layer in enumerate(cache.layers):
        if not _replaced(config, index):
            continue
        if isinstance(layer, StaticSlidingWindowLayer):
            raise ValueError(
                f"layer {index} replaces its own window, which a static cache cannot hold: use the dynamic cache "
                "(the default) with own_windows='replace'"
            )
        if isinstance(layer, DynamicSlidingWindowLayer):
            cache.layers[index] = DynamicLayer()
    return kwargs


def _replaces(config: Any) -> bool:
    plan = stored_plan(config)
    return bool(plan["attention"]) and plan["own_windows"] == "replace"


def _replaced(config: Any, index: int) -> bool:
    plan = stored_plan(config)
    return layer_plan(plan["attention"], plan["own_windows"], index, shape_key(config, 1)).replaced
