"""The cache that a plan needs: each layer drops what its pattern can no longer see, and keeps what it still may.

Mamba layers keep a state instead. transformers asks the first attention layer for lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_longctx.hf.attention import stored_plan
from hf_longctx.hf.cache_argument import cache_among, with_cache
from hf_longctx.hf.layers import plan_layers
from hf_longctx.hf.mixers import mamba_layers
from hf_longctx.patterns import parse
from hf_longctx.patterns.retention import most_kept


def ready(decoder: Any, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a decoder's forward with a cache that fits the plan.

    A cache that is to be made is made here, so that it can be seen by whoever comes after.

    Raises:
        ValueError: a preallocated cache whose layers roll over a replaced window, or one that has no layers.
    """
    from transformers import Cache, DynamicCache
    from transformers.cache_utils import StaticLayer

    config = decoder.config
    cache = cache_among(kwargs)
    wanted, stored = kwargs.get("use_cache"), stored_plan(config)
    if decoder.training and stored["mamba"] and wanted is None:
        wanted = False  # training needs none, and the one that transformers would make has no states
        kwargs = kwargs | {"use_cache": False}
    made = not decoder.training or stored["mamba"]
    if cache is None and made and (config.use_cache if wanted is None else wanted):
        cache = DynamicCache(config=config)
        kwargs = with_cache(kwargs | {"use_cache": True}, cache)
    if cache is None or not (stored["attention"] or stored["mamba"]):
        return kwargs
    if not isinstance(cache, Cache):
        raise ValueError(
            f"the cache is a {type(cache).__name__}, which patched attention and Mamba layers cannot use: call "
            "model.generate, or pass a transformers Cache such as DynamicCache()"
        )
    fit(cache, decoder)
    _note_masking(cache, any(isinstance(layer, StaticLayer) for layer in cache.layers))
    _open(cache)
    return kwargs


def fit(cache: Any, decoder: Any) -> None:
    """Give an empty dynamic cache the layers that the plan needs; leave every other cache as it is.

    A layer under a pattern that drops keys becomes an `EvictingLayer`; one whose own window is replaced by a pattern
    that keeps all, a full layer; a Mamba layer's, a `StateLayer`, in a preallocated cache too. A cache made without a
    config (`DynamicCache()`) and one that is offloaded keep all keys.

    Raises:
        ValueError: a preallocated cache whose layers roll over a replaced window, or one that another model filled.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticSlidingWindowLayer

    from hf_longctx.hf.eviction import EvictingLayer

    mamba = mamba_layers(decoder.config)
    _note_masking(cache, False)  # a forward that failed may have left it
    if cache.get_seq_length():
        _check_states(cache, mamba)
        return
    keeps_all = not cache.layers
    _add_states(cache, mamba, decoder.config.num_hidden_layers)
    stored = stored_plan(decoder.config)
    if not stored["attention"] or keeps_all:
        return
    plans = plan_layers(decoder, parse(stored["attention"]), stored["own_windows"])
    evicts = type(cache) is DynamicCache and not cache.offloading
    for index, (plan, layer) in enumerate(zip(plans, cache.layers)):
        if plan.replaced and isinstance(layer, StaticSlidingWindowLayer):
            raise ValueError(
                f"layer {index} replaces its own window, which a static cache cannot hold: use the dynamic cache "
                "(the default) with own_windows='replace'"
            )
        if evicts and type(layer) in (DynamicLayer, DynamicSlidingWindowLayer, EvictingLayer):
            new = DynamicLayer() if most_kept(plan.pattern) is None else EvictingLayer(plan.pattern)
            if getattr(layer, "record_past", False) and isinstance(new, EvictingLayer):
                new.activate_past_recording()
            cache.layers[index] = new
        elif isinstance(layer, DynamicSlidingWindowLayer):
            # It drops keys by slot, where a window counts the real tokens of a row.
            cache.layers[index] = DynamicLayer()


def _add_states(cache: Any, mamba: Sequence[int], layers: int) -> None:
    """Give a cache that holds nothing a `StateLayer` for each Mamba layer."""
    from hf_longctx.hf.state_layer import StateLayer

    if not mamba:
        return
    while len(cache.layers) < layers:  # a cache made without a config adds its layers as they are used
        cache.layers.append(cache.layer_class_to_replicate())
    for index in mamba:
        if not isinstance(cache.layers[index], StateLayer) or cache.layers[index].past is not None:
            cache.layers[index] = StateLayer()


def _check_states(cache: Any, mamba: Sequence[int]) -> None:
    from hf_longctx.hf.state_layer import StateLayer

    for index in mamba:
        if index >= len(cache.layers) or not isinstance(cache.layers[index], StateLayer):
            raise ValueError(
                f"layer {index} is a Mamba layer, but past_key_values holds tokens and no state for it: start with an "
                "empty cache"
            )


def _note_masking(cache: Any, masking: bool) -> None:
    """Tell the states of a cache whether a forward begins that masks empty slots beside them."""
    from hf_longctx.hf.state_layer import StateLayer

    for layer in cache.layers:
        if isinstance(layer, StateLayer):
            layer.masking = masking


def _open(cache: Any) -> None:
    """Tell the layers that drop keys that a forward begins."""
    from hf_longctx.hf.eviction import EvictingLayer

    for layer in cache.layers:
        if isinstance(layer, EvictingLayer):
            layer.open()
