"""Mamba-2 layers inside a transformers model: reading an attention layer, putting a mixer in its place, feeding it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from hf_longctx.compiling import eager
from hf_longctx.hf.attention import TEACHER
from hf_longctx.hf.cache_argument import cache_among
from hf_longctx.hf.layers import attention_modules
from hf_longctx.hf.tokens import Tokens
from hf_longctx.hf.undo import STEPS, Swap, Undo
from hf_longctx.hf.windows import own_window
from hf_longctx.mamba.convert import convert
from hf_longctx.mamba.mamba2 import Mamba2, parse
from hf_longctx.mamba.mixer import Form, Mamba2Mixer
from hf_longctx.plan import kinds_of

#: Parameters that stay float32 whatever the model's dtype.
EXACT = ("A_log", "dt_bias", "D", "scale")
UNHEALED = (
    "converted to Mamba-2 and not trained since: its answers are worse than the model's own until it is healed by "
    "distillation or fine-tuning"
)


class CachedMixer(Mamba2Mixer):
    """A mixer called as transformers calls an attention module, its state in the cache of its layer."""

    def __init__(self, form: Form, layer_idx: int, **kwargs: Any) -> None:
        super().__init__(form, **kwargs)
        self.layer_idx = layer_idx

    @eager
    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        cache: Any = None,
        longctx_tokens: Tokens | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """The layer's output.

        Args:
            hidden_states: (B, new, hidden).
            position_embeddings: cosines and sines for the new tokens.
            attention_mask: of the attention layers; not used.
            cache: the cache, or None.
            longctx_tokens: what is padding and which document is whose; None for real tokens of one document.
            **kwargs: the rest of transformers' contract; only `past_key_values`, the cache's older name, is used.

        Returns:
            (B, new, hidden), and no weights.

        Raises:
            ValueError: a cache without a state for this layer.
        """
        from hf_longctx.hf.state_layer import StateLayer

        tokens = longctx_tokens or Tokens()
        cache = cache_among(kwargs) if cache is None else cache
        layer = None if cache is None else cache.layers[self.layer_idx]
        if layer is not None and not isinstance(layer, StateLayer):
            raise ValueError(
                f"layer {self.layer_idx} is a Mamba layer, but past_key_values holds a {type(layer).__name__} for it: "
                "start with an empty cache"
            )
        past = None if layer is None else layer.past
        out, left = self.mix(
            hidden_states, position_embeddings, past=past, valid=tokens.valid, documents=tokens.documents
        )
        if layer is not None:
            layer.store(*left)
        return out, None


# ------------------------------------------------------------------ reading an attention layer


def _separate(attention: Any) -> dict[str, nn.Module]:
    return {name: getattr(attention, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj")}


def _fused(attention: Any) -> dict[str, nn.Module]:
    return {"qkv_proj": attention.qkv_proj, "o_proj": attention.o_proj}


#: How the projections of each attention class are stored. Others may rotate or normalise in ways of their own.
PROJECTIONS: dict[str, Callable[[Any], dict[str, nn.Module]]] = {
    "LlamaAttention": _separate,
    "MistralAttention": _separate,
    "Qwen2Attention": _separate,
    "Qwen3Attention": _separate,
    "Gemma3Attention": _separate,
    "Phi3Attention": _fused,
}


def read(attention: Any) -> dict[str, Tensor]:
    """The weights of an attention module by the names that `convert` knows; a fused projection is cut into three.

    Raises:
        ValueError: a class that is not known, or weights that are quantised or not in memory.
    """
    name, index = type(attention).__name__, int(attention.layer_idx)
    if name not in PROJECTIONS:
        known = ", ".join(known.removesuffix("Attention") for known in PROJECTIONS)
        raise ValueError(f"layer {index} is a {name}, which cannot be converted to Mamba-2: known are {known}")
    weights: dict[str, Tensor] = {}
    for projection, module in PROJECTIONS[name](attention).items():
        if type(module) is not nn.Linear or not module.weight.is_floating_point():
            raise ValueError(
                f"layer {index} has a {type(module).__name__} as {projection}, which cannot be converted to Mamba-2: "
                "load the model without quantisation or adapters"
            )
        for kind, tensor in module.named_parameters():
            weights[f"{projection}.{kind}"] = tensor
    for norm in ("q_norm", "k_norm"):
        for kind, tensor in attention.named_parameters():
            if kind.startswith(f"{norm}."):
                weights[kind] = tensor
    heads, kv_heads, size = _sizes(attention)
    for kind in ("weight", "bias"):
        if (fused := weights.pop(f"qkv_proj.{kind}", None)) is not None:
            parts = fused.split([heads * size, kv_heads * size, kv_heads * size])
            weights |= {f"{p}_proj.{kind}": part for p, part in zip("qkv", parts)}
    return weights


def form_of(attention: Any, plan: Mamba2) -> Form:
    """The sizes of the mixer that stands in for an attention module.

    >>> from hf_longctx.hf.loading import skeleton
    >>> from transformers import LlamaConfig
    >>> model = skeleton(LlamaConfig(num_hidden_layers=2, num_key_value_heads=8))
    >>> form_of(model.model.layers[0].self_attn, Mamba2("0")).state_numbers == 8 * 128 * 128
    True
    """
    weights = read(attention)
    heads, kv_heads, size = _sizes(attention)
    return Form(
        hidden=weights["q_proj.weight"].shape[1],
        heads=heads,
        kv_heads=kv_heads,
        head_dim=size,
        taps=plan.conv,
        scale=float(attention.scaling),
        rope=plan.rotates,
        classic=plan.classic,
        qkv_bias=not plan.classic and "q_proj.bias" in weights,
        out_bias=not plan.classic and "o_proj.bias" in weights,
        eps=float(getattr(attention.config, "rms_norm_eps", 1e-5)),
    )


def _sizes(attention: Any) -> tuple[int, int, int]:
    """Query heads, key-value heads, head size."""
    config = attention.config
    return int(config.num_attention_heads), int(config.num_key_value_heads), int(attention.head_dim)


# ------------------------------------------------------------------ which layers, and the swap


@lru_cache(maxsize=256)
def _selected(text: str, kinds: tuple[str, ...]) -> tuple[int, ...]:
    return parse(text).select(kinds)


def mamba_layers(config: Any) -> tuple[int, ...]:
    """The layers that the plan in a config makes Mamba layers."""
    stored = getattr(config, "longctx", None)
    if not stored or not stored.get("mamba"):
        return ()
    windows = [getattr(config, "sliding_window", None)] * int(config.num_hidden_layers)
    return _selected(stored["mamba"], kinds_of(getattr(config, "layer_types", None) or (), windows))


def mixers(model: nn.Module) -> dict[int, CachedMixer]:
    """The mixers of a model by layer."""
    return {module.layer_idx: module for module in model.modules() if isinstance(module, CachedMixer)}


def teachers(model: nn.Module) -> dict[int, nn.Module]:
    """The attention modules that stand by, unused, behind the mixers of a model converted in memory.

    Each takes the arguments of its mixer (a 4-D or no `attention_mask`, no cache), so both can be run on the same
    hidden states. Empty for a model that was loaded converted. They are no submodules: `model.to` does not move them.
    """
    return {int(step.old.layer_idx): step.old for step in _swaps(model)}


@contextmanager
def as_teacher(model: nn.Module) -> Iterator[dict[int, nn.Module]]:
    """The model with its attention modules in their old places, for as long as the context lasts; nothing is copied.

    Args:
        model: a model converted in memory; call it without a cache.

    Yields:
        The attention modules by layer.

    Raises:
        ValueError: a model without attention modules behind its mixers.
    """
    swaps = _swaps(model)
    if not swaps:
        raise ValueError(
            f"{type(model).__name__} has no attention modules behind Mamba layers: convert the original model in "
            "memory with patch(model, mamba=...)"
        )
    now = [step.parent._modules[step.name] for step in swaps]
    for step in swaps:
        step.parent._modules[step.name] = step.old
        vars(step.old)[TEACHER] = True
    try:
        yield teachers(model)
    finally:
        for step, module in zip(swaps, now):
            step.parent._modules[step.name] = module
            del vars(step.old)[TEACHER]


@torch.no_grad()
def as_converted(model: nn.Module, plan: Mamba2) -> bool:
    """Whether every mixer is still what its conversion made, so that converting again would bring it back.

    Args:
        model: a model with Mamba layers.
        plan: by which they were converted.

    Returns:
        False where one was trained, has an adapter, was cast or loaded: what it is now would be lost.
    """
    swaps = _swaps(model)
    for step in swaps:
        now = step.parent._modules[step.name].state_dict()  # type: ignore[union-attr]
        made = mixer_for(step.old, plan).state_dict()
        if now.keys() != made.keys() or not all(_equal(now[name], made[name]) for name in now):
            return False
    return len(swaps) == len(mixers(model))


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and not a.is_meta and torch.equal(a.to(b.device), b)


def _swaps(model: nn.Module) -> list[Swap]:
    return [step for step in vars(model).get(STEPS, ()) if isinstance(step, Swap)]


def check(model: Any, plan: Mamba2) -> tuple[int, ...]:
    """The layers of a model that a plan converts, all of them readable.

    Raises:
        ValueError: a selector that fits no layer, no attention layer left, or a layer that cannot be converted.
    """
    modules = attention_modules(model)
    if len(modules) != model.config.num_hidden_layers:
        raise ValueError(
            f"{type(model).__name__} has {model.config.num_hidden_layers} layers, but {len(modules)} attention "
            "modules were found: this architecture cannot be converted to Mamba-2"
        )
    windows = [own_window(modules[i]) for i in range(len(modules))]
    chosen = plan.select(kinds_of(getattr(model.config, "layer_types", None) or (), windows))
    for index in chosen:
        form_of(modules[index], plan)
        if model.device.type != "meta" and any(p.is_meta for p in modules[index].parameters()):
            raise ValueError(
                f"layer {index} has weights that are offloaded: load the model into memory (without disk or CPU "
                "offload in device_map) to convert it"
            )
    return chosen


def swap(model: Any, plan: Mamba2, layers: Collection[int], *, empty: bool = False) -> list[Undo]:
    """Put mixers in the place of attention modules.

    Args:
        model: the model; changed in place.
        plan: from what the mixers start.
        layers: which, as `check` gives them.
        empty: leave the parameters unset, for a checkpoint whose weights are about to be loaded.

    Returns:
        The undo steps. Should it fail half way, what it did is undone.
    """
    steps: list[Undo] = []
    try:
        for parent in list(model.modules()):
            for name, module in list(parent.named_children()):
                if getattr(module, "layer_idx", None) in layers and type(module).__name__ in PROJECTIONS:
                    steps.append(Swap(parent, name, mixer_for(module, plan, empty=empty)))
    except BaseException:
        for step in reversed(steps):
            step.undo()
        raise
    return steps


def mixer_for(attention: Any, plan: Mamba2, *, empty: bool = False) -> CachedMixer:
    """The mixer that starts from an attention module; it shares no memory with it."""
    form, index = form_of(attention, plan), int(attention.layer_idx)
    weights = read(attention)
    like = weights["q_proj.weight"]
    norms = {} if plan.classic else {n: copy.deepcopy(getattr(attention, n, None)) for n in ("q_norm", "k_norm")}
    mixer = CachedMixer(form, index, **norms, device="meta", dtype=like.dtype)
    if empty:
        return mixer
    with torch.no_grad():
        values = convert(weights, form, plan, layer=index)
    mixer.load_state_dict(values, assign=True)
    for parameter in mixer.parameters():
        parameter.requires_grad_(like.requires_grad)
    return mixer.train(attention.training)
