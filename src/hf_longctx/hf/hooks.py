"""What runs in a patched model: before each forward, when `generate` makes a cache, and around `generate`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, cast

from hf_longctx.compiling import eager
from hf_longctx.hf import caches, lengths
from hf_longctx.hf.attention import stored_plan
from hf_longctx.hf.cache_argument import cache_among
from hf_longctx.hf.places import begin
from hf_longctx.hf.tokens import tokens_of
from hf_longctx.patterns import Layers, parse


@eager
def before_forward(decoder: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Runs before each forward of a patched decoder: refuses what would be ignored, readies cache and frequencies."""
    config = decoder.config
    plan = stored_plan(config)
    names = _names(type(decoder).forward)
    if 1 < len(args) <= len(names):  # a mask or cache given by its place is seen too
        args, kwargs = args[:1], kwargs | dict(zip(names[1:], args[1:]))
    changed = plan["attention"] or plan["mamba"]
    if changed and (kwargs.get("output_attentions") or getattr(config, "output_attentions", False)):
        raise ValueError(
            "output_attentions is set, but patched attention and Mamba layers have no weights to return: unpatch the "
            "model for it"
        )
    kwargs = caches.ready(decoder, args, kwargs)
    begin(config, kwargs.get("attention_mask"), kwargs.get("position_ids"), cache_among(kwargs))
    tokens = next(
        (x for x in (*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if x is not None), None
    )
    if tokens is not None and plan["mamba"]:
        kwargs = {**kwargs, "longctx_tokens": tokens_of(decoder, kwargs, *tokens.shape[:2])}
    if tokens is not None:
        lengths.before_forward(decoder, kwargs, int(tokens.shape[1]))
    return args, kwargs


@cache
def _names(forward: Hashable) -> tuple[str, ...]:
    """The arguments of a decoder's forward, in order."""
    parameters = inspect.signature(cast("Callable[..., Any]", forward)).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)[1:]


def prepare_cache_for_generation(
    self: Any, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
) -> Any:
    """The cache that `generate` makes, with layers that fit the plan before assisted decoding asks them to record.

    Raises:
        ValueError: a model with Mamba layers as the assistant, whose tokens are to be taken back; one whose layers
            have plans of their own as its own assistant.
    """
    if generation_config.is_assistant and self.config.longctx["mamba"]:
        raise ValueError(
            f"{type(self).__name__} has Mamba layers, which cannot take tokens back, so it cannot assist: give "
            "another assistant_model, or none"
        )
    if getattr(generation_config, "assistant_early_exit", None) and (
        self.config.longctx["mamba"] or isinstance(parse(self.config.longctx["attention"] or "full"), Layers)
    ):
        raise ValueError(
            "assistant_early_exit runs the first layers of the model alone, and its plan is by layer: give an "
            "assistant_model of its own, or none"
        )
    result = type(self)._prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs)
    cache = cache_among(model_kwargs)
    if cache is not None:
        caches.fit(cache, self.get_decoder())
        if generation_config.is_assistant:
            cache.activate_past_recording()
    return result


def generate(self: Any, inputs: Any = None, generation_config: Any = None, **kwargs: Any) -> Any:
    """`generate` under one length, prompt and new tokens together, for RoPE that depends on it.

    Padding does not count. A batch has one set of frequencies, so the row with the most real tokens decides. A length
    that the caller holds already stays.
    """
    if lengths.is_held(self):
        return type(self).generate(self, inputs, generation_config, **kwargs)
    settings = generation_config or self.generation_config
    prompt = next((x for x in (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if x is not None), None)
    length = 1 if prompt is None else int(prompt.shape[1])
    mask = kwargs.get("attention_mask")
    padding = 0
    if mask is not None and mask.ndim == 2 and mask.shape[1] == length:
        padding = length - int(mask.bool().sum(-1).max())
    new = kwargs.get("max_new_tokens", settings.max_new_tokens)
    most = kwargs.get("max_length", settings.max_length) or 20  # transformers' own default
    total = length + new if new is not None else max(length + 1, most)
    with lengths.held_length(self, total - padding):
        return type(self).generate(self, inputs, generation_config, **kwargs)
