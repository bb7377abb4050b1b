"""The two functions registered with transformers: which keys are there, and the attention over them.

The mask function returns the logical position of every live key, (B, 1, 1, live) int64 with -1 for padding: linear in
the length, the same for all layers, and enough to build any pattern inside the attention function. Its length says how
many slots of the key buffer are live, so static caches need no offset.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from hf_longctx.compiling import eager
from hf_longctx.hf.layer_sizes import kv_heads, layer_config
from hf_longctx.hf.places import OWN_MASK, Places, made_for, running_cache
from hf_longctx.hf.round_trip import same
from hf_longctx.hf.windows import own_window
from hf_longctx.patterns import Heads, Layers, Pattern, parse
from hf_longctx.patterns.base import registered
from hf_longctx.plan import STATE_KIND, LayerPlan, ModelShape, kinds_of, resolve_one

#: Must contain none of the names that transformers treats specially (flash, sdpa, flex_attention).
NAME = "longctx"
#: Set on an attention module while it stands, as the teacher of the mixer behind it, where a Mamba layer is planned.
TEACHER = "longctx_teacher"
#: The layout of `config.longctx` that this version reads and writes.
PLAN_VERSION = 1
#: Its fields besides the version, and their types.
_PLAN_FIELDS = {
    "attention": str | None, "rope": str | None, "mamba": str | None, "healed": bool, "backend": str,
    "own_windows": str, "original": dict,
}  # fmt: skip
#: Terms that some models add to the scores; dropping them silently would yield garbage. `sinks` are one
#: for each token (Inkling 2); learned ones, one for each head, come as `s_aux`.
_UNSUPPORTED = ("sinks", "softcap", "position_bias", "head_mask", "indices", "block_indices")


def register() -> None:
    """Register both functions with transformers, the only globals that importing this package changes."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, longctx_attention)
    AttentionMaskInterface.register(NAME, longctx_mask)


@eager
def longctx_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    attention_mask: Tensor | None = None,
    use_vmap: bool = False,
    device: Any = None,
    config: Any = None,
    **kwargs: Any,
) -> Tensor:
    """Logical positions of the live keys, as transformers' mask function of this attention.

    Args:
        batch_size: B.
        q_length: new tokens in this forward.
        kv_length: slots in the key buffer (more than are live, under a static cache).
        q_offset: slot of the first new token, evicted ones included.
        kv_offset: slot of the first key in the buffer.
        attention_mask: (B, slots) bool, False for padding, or None.
        use_vmap: True where a model joins functions of its own to the causal mask.
        device: of the result.
        config: of the decoder whose forward this is for.
        **kwargs: the rest of transformers' contract.

    Returns:
        (B or 1, 1, 1, live) int64: index among the real tokens of the row, -1 for padding.

    Raises:
        ValueError: a model that is not causal, or that adds a mask of its own; a mask that lacks tokens.
    """
    if use_vmap or "allow_is_bidirectional_skip" in kwargs:
        raise ValueError(
            "this model adds a mask function of its own (bidirectional, or joined to the causal one), which attention "
            "patterns cannot express: unpatch its attention"
        )
    start, stop = int(kv_offset), int(q_offset) + q_length
    if attention_mask is None:
        positions = torch.arange(start, stop, device=device)
        return made_for(positions[None, None, None, :], config, torch.arange(start, stop)[None])
    if attention_mask.shape[1] < stop:
        raise ValueError(
            f"attention_mask has {attention_mask.shape[1]} columns, but there are {stop} tokens, of which {q_length} "
            "are new: pass an attention_mask for all tokens, those in the cache included, or none"
        )
    valid = attention_mask[:, :stop].to(device=device, dtype=torch.bool)
    positions = torch.where(valid, valid.cumsum(-1) - 1, -1)
    return made_for(positions[:, None, None, start:], config)


@eager
def longctx_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    position_ids: Tensor | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer under the plan in its config, as transformers' attention function.

    Args:
        module: the attention module; its `layer_idx` and `config.longctx` say which pattern.
        query: (B, Hq, Lq, D), rotated.
        key: (B, Hkv, >= live, D), rotated, from the cache, not repeated.
        value: as `key`.
        attention_mask: what `longctx_mask` returned.
        scaling: of the scores; 1/sqrt(D) if None.
        dropout: must be 0.
        sliding_window: the layer's own window as some families pass it; `own_window` knows those of all.
        position_ids: (B or 1, Lq); where they restart without a cache, documents are packed.
        s_aux: (Hq,) learned sinks, from models that have them (gpt-oss).
        **kwargs: the rest of transformers' contract.

    Returns:
        (B, Lq, Hq, D) in the query's dtype, and None for the weights.

    Raises:
        ValueError: anything that would otherwise be ignored: dropout, a 4-D mask of the user's own, score terms.
    """
    from hf_longctx.attention.attend import attend_within, outline

    _refuse(module, attention_mask, dropout, kwargs)
    sliding_window = own_window(module) or sliding_window
    stored = stored_plan(module.config)
    index = int(module.layer_idx)  # type: ignore[arg-type]
    key_of = shape_key(module.config, sliding_window, key.shape[1])
    layer = layer_plan(stored["attention"], stored["own_windows"], index, key_of)
    if layer.kind == STATE_KIND and not getattr(module, TEACHER, False):
        raise ValueError(
            f"layer {index} was saved as a Mamba layer, and stands here as attention: load the checkpoint with "
            "hf_longctx.from_pretrained"
        )
    if query.is_meta:
        return outline(query, key, value, s_aux).transpose(1, 2), None
    places = Places.of(attention_mask, module.config)  # type: ignore[arg-type]
    if isinstance(layer.pattern, Heads):
        heads = kv_heads(layer_config(module.config, index), module)
        if heads != key.shape[1]:
            raise ValueError(
                f"layer {index} has {key.shape[1]} heads of keys where its config speaks of {heads}, so which pattern "
                f"belongs to which is not known: give one for all heads in place of {layer.given}"
            )
    dropping, slots = _dropping(key, module.config, layer)
    positions = places.table if dropping is None else dropping.positions(places, slots)
    live = positions.shape[-1]
    if key.shape[2] < live:
        raise ValueError(
            f"layer {index} holds {key.shape[2]} keys, but its mask has {live}: the cache's layers differ in length; "
            "pass past_key_values=transformers.DynamicCache(), which keeps every key when it is made without a config"
        )
    if dropping is None and (layer.replaced or sliding_window):
        queries, window = query.shape[2], None if layer.replaced else sliding_window
        if places.remember(("lacks", queries, window), lambda: places.lacks(queries, window)):
            raise ValueError(_lacking(index, layer, window))
    out = attend_within(
        query,
        key[:, :, :live],
        value[:, :, :live],
        layer.pattern,
        places.layout(query.shape[2], positions, position_ids, query.shape[0]),
        scale=scaling,
        backend=stored["backend"],
        layer=index,
        sinks=s_aux,
    )
    if dropping is not None:
        dropping.settle(places)
    return out.transpose(1, 2).contiguous(), None


def _lacking(index: int, layer: LayerPlan, window: int | None) -> str:
    """What to say where the cache has dropped keys that a layer sees."""
    if window is None:
        return (
            f"layer {index} replaces its own window by {layer.given}, but the cache has already dropped keys: load "
            "the checkpoint with hf_longctx.from_pretrained, which sees to the cache"
        )
    return (
        f"layer {index} has a window of its own of {window} tokens, but the cache has dropped some of them: a row has "
        "padding between its tokens, and this cache counts slots; use the dynamic cache (the default)"
    )


def _dropping(keys: Tensor, config: Any, plan: LayerPlan) -> tuple[Any, Tensor | None]:
    """The layer of the cache that the keys are from and their slots, if it is one that drops keys.

    The keys themselves say so where they are as the cache gave them; some families expand them first.

    Raises:
        ValueError: it was filled under another pattern.
    """
    from hf_longctx.hf.eviction import EvictingLayer, origin

    found = origin(keys)
    if found is None and (cache := running_cache(config)) is not None:
        own = cache.layers[plan.index] if plan.index < len(cache.layers) else None
        if isinstance(own, EvictingLayer) and own.slots is not None and len(own.slots) == keys.shape[2]:
            found = own, own.slots
    if found is None:
        return None, None
    layer = found[0]
    if layer.pattern != plan.pattern and not same(layer.pattern, plan.pattern):
        raise ValueError(
            f"layer {plan.index} of past_key_values drops keys under {layer.pattern}, but the model computes "
            f"{plan.pattern}: start with an empty cache"
        )
    return found


def stored_plan(config: Any) -> dict[str, Any]:
    """The plan in `config.longctx`, checked.

    Raises:
        ValueError: none there, or one of another version.
    """
    stored = getattr(config, "longctx", None)
    if not stored:
        raise ValueError(
            f"attention implementation {NAME!r} is set, but config.longctx holds no plan: "
            "use hf_longctx.patch(model, attention=...) instead of setting it by hand"
        )
    advice = "install the version that saved the checkpoint, or remove `longctx` from its config.json and patch again"
    version = stored.get("version") if isinstance(stored, dict) else None
    if version != PLAN_VERSION:
        raise ValueError(
            f"config.longctx has version {version!r}, and this hf_longctx reads version {PLAN_VERSION}: {advice}"
        )
    for field, kinds in _PLAN_FIELDS.items():
        if field not in stored or not isinstance(stored[field], kinds):
            found = repr(stored[field]) if field in stored else "missing"
            raise ValueError(f"config.longctx is damaged: its field {field!r} is {found}; {advice}")
    return stored


def arguments(stored: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `patch` that make a stored plan again."""
    return {name: stored[name] for name in ("attention", "rope", "mamba", "backend", "own_windows")}


def shape_key(
    config: Any, window: int | None, heads: int
) -> tuple[int, tuple[str, ...], int, int | None, tuple[int, ...]]:
    """What `layer_plan` needs of a config, hashable.

    Args:
        config: the decoder's.
        window: the layer's own.
        heads: its key-value heads.

    Returns:
        The number of layers, their types where the config names them, the heads, the window, and which are Mamba
        layers.
    """
    from hf_longctx.hf.mixers import mamba_layers

    kinds = tuple(getattr(config, "layer_types", None) or ())
    return int(config.num_hidden_layers), kinds, heads, window, mamba_layers(config)


def layer_plan(
    attention: str | None,
    own_windows: str,
    index: int,
    key: tuple[int, tuple[str, ...], int, int | None, tuple[int, ...]],
) -> LayerPlan:
    """The plan of one layer from the text in a config; parsed once, and again when a pattern class is defined."""
    return _layer_plan(attention, own_windows, index, key, registered())


@lru_cache(maxsize=4096)
def _layer_plan(
    attention: str | None,
    own_windows: str,
    index: int,
    key: tuple[int, tuple[str, ...], int, int | None, tuple[int, ...]],
    classes: tuple[type[Pattern], ...],
) -> LayerPlan:
    layers, kinds, heads, window, mamba = key
    windows = (window,) * layers
    shape = ModelShape(kinds_of(kinds, windows, mamba), windows, heads)
    pattern: Pattern | Layers | None = parse(attention) if attention else None
    return resolve_one(index, pattern, shape, own_windows)


def _refuse(module: torch.nn.Module, mask: Tensor | None, dropout: float, kwargs: dict[str, Any]) -> None:
    name = type(module).__name__
    if dropout:
        field = next((f for f in ("attention_dropout", "attn_pdrop") if hasattr(module.config, f)), "its dropout")
        raise ValueError(
            f"{name}: attention dropout is {dropout}, which patched attention does not apply: "
            f"load the model with {field}=0.0"
        )
    for term in _UNSUPPORTED:
        if kwargs.get(term) is not None:
            raise ValueError(
                f"{name} passes {term!r} to its attention, which patched attention does not apply: unpatch it"
            )
    if kwargs.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        raise ValueError(f"{name} is not causal: attention patterns are for causal language models only")
    if mask is None or mask.dtype != torch.int64 or mask.ndim != 4 or mask.shape[2] != 1:
        what = "no mask" if mask is None else f"a {mask.dtype} mask of shape {tuple(mask.shape)}"
        raise ValueError(f"{name} was given {what}: {OWN_MASK}")
