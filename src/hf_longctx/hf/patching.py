"""`patch`, `unpatch`, `patched`: change a model in place and put everything back.

All is computed and checked before the first change; every change is an undo step on the model.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from hf_longctx.hf import hooks, mixers, rotary
from hf_longctx.hf.attention import NAME, PLAN_VERSION, stored_plan
from hf_longctx.hf.layers import attention_modules, device_of, has_sinks, key_sources, plan_layers
from hf_longctx.hf.round_trip import check_pattern, check_rope
from hf_longctx.hf.undo import STEPS, Attributes, Hook, Implementation, Swap, Undo
from hf_longctx.mamba.mamba2 import Mamba2
from hf_longctx.mamba.mamba2 import parse as parse_mamba
from hf_longctx.patterns import Layers, Pattern, parse
from hf_longctx.patterns.layers import ATTENTION_KINDS
from hf_longctx.patterns.retention import most_kept
from hf_longctx.plan import check_own_windows
from hf_longctx.rope import Scaling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound="PreTrainedModel")


def patch(
    model: Model,
    *,
    attention: str | Pattern | Layers | None = None,
    rope: str | Scaling | None = None,
    mamba: str | Mamba2 | None = None,
    backend: str = "auto",
    own_windows: str = "intersect",
) -> Model:
    """Change a causal language model in place: attention pattern, RoPE scaling, Mamba-2 layers. It stays of its class.

    Order with others: load, patch, PEFT, Trainer, and before `torch.compile`.

    Args:
        model: a transformers causal language model.
        attention: a pattern, a plan by layer, or its text, such as `SlidingWindow(1024) | Global(4)` or
            `"0,-1=full;*=window:1024+global:4"`. Layers that no selector covers stay stock; `*` passes over Mamba
            layers. The config keeps the text, so a class of your own must be registered under a name, and be a frozen
            dataclass whose fields have a text form.
        rope: a scaling or its text, such as `YaRN(factor=4)` or `"yarn:4"`; `"none"` removes a native one.
        mamba: attention layers that become Mamba-2 layers, such as `Mamba2(layers="1::4")` or `"1::4"`. They start
            from the model's own weights and are worse until they are trained; `docs/hybrids.md` says what to expect.
        backend: how attention is computed: `auto`, `reference`, `dense`, `tiled`, `flex`, `flash`, as in `attend`. An
            explicit one never falls back.
        own_windows: what becomes of windows that layers have of their own: `intersect` or `replace`.

    Returns:
        The same object.

    Raises:
        ValueError: nothing to do, already patched, compiled, a model or value that cannot be handled. Nothing has
            changed when it is raised.
        TypeError: not a transformers model, or a value of the wrong kind.
    """
    return _patch(model, attention=attention, rope=rope, mamba=mamba, backend=backend, own_windows=own_windows)


def adopt(model: Model, plan: dict[str, Any], *, healed: bool, swaps: Sequence[Undo] = ()) -> Model:
    """Patch a model whose Mamba layers stand in their places already.

    Args:
        model: the model.
        plan: keyword arguments of `patch`.
        healed: whether its Mamba layers have been trained.
        swaps: the undo steps of the Mamba layers, empty where their attention weights are gone.
    """
    return _patch(model, **plan, healed=healed, swaps=swaps)


def _patch(
    model: Model,
    *,
    attention: str | Pattern | Layers | None,
    rope: str | Scaling | None,
    mamba: str | Mamba2 | None,
    backend: str,
    own_windows: str,
    healed: bool = False,
    swaps: Sequence[Undo] | None = None,
) -> Model:
    """`patch`; where `swaps` is given, as for `adopt`."""
    from hf_longctx.attention import check_backend_name

    _check_model(model)
    if attention is None and rope is None and mamba is None:
        raise ValueError("patch has nothing to do: give at least one of attention, rope, mamba")
    check_backend_name(backend)
    config: Any = model.config
    given = None if attention is None else parse(attention)
    if given is not None:
        check_pattern(given)
    hybrid = None if mamba is None else parse_mamba(mamba)
    check_own_windows(own_windows)
    converted: tuple[int, ...] = ()
    if hybrid is not None:
        converted = mixers.check(model, hybrid) if swaps is None else tuple(mixers.mixers(model))
    if given is not None:
        _check_attention(model, given, backend, own_windows, converted)
    change = None if rope is None else rotary.plan(config, rope)
    if change is not None:
        check_rope(change.scaling)

    steps: list[Undo] = list(swaps or ())
    kept = len(steps)
    try:
        stored = {
            "version": PLAN_VERSION,
            "attention": None if given is None else str(given),
            "rope": None if change is None else str(change.scaling),
            "mamba": None if hybrid is None else str(hybrid),
            "healed": healed,
            "backend": backend,
            "own_windows": own_windows,
            "original": {} if change is None else {k: copy.deepcopy(getattr(config, k)) for k in change.fields},
        }
        steps.append(Attributes(config, {"longctx": stored}))
        if hybrid is not None:
            if swaps is None:
                steps.extend(mixers.swap(model, hybrid, converted))
            # So that transformers refuses what takes tokens back, such as assisted decoding.
            steps.append(Attributes(model, {"_is_stateful": True}))
        if change is not None:
            rotary.apply(model, change, steps)
        if given is not None:
            steps.append(_switch(model))
        if given is not None or hybrid is not None:
            prepare = partial(hooks.prepare_cache_for_generation, model)
            steps.append(Attributes(model, {"_prepare_cache_for_generation": prepare}))
        if given is not None or hybrid is not None or (change is not None and change.scaling.length_dependent):
            decoder = model.get_decoder()
            steps.append(Hook(decoder.register_forward_pre_hook(hooks.before_forward, with_kwargs=True)))
        if change is not None and change.scaling.length_dependent:
            steps.append(Attributes(model, {"generate": partial(hooks.generate, model)}))
    except BaseException:
        for step in reversed(steps[kept:]):
            step.undo()
        raise
    vars(model)[STEPS] = steps
    if hybrid is not None and not healed:
        _warn_once(f"{type(model).__name__}: layers {', '.join(map(str, sorted(converted)))} are {mixers.UNHEALED}")
    return model


@cache
def _warn_once(text: str) -> None:
    logger.warning(text)


def unpatch(model: Model, *, mamba: bool = True) -> Model:
    """Put a patched model back as it was: the same modules, config, hooks and logits, bit for bit.

    A checkpoint of a patched model that plain transformers loaded is restored from the originals in its config. Mamba
    layers give way to the attention that they replaced in memory; a model that was loaded converted has none.

    Args:
        model: the model.
        mamba: False leaves Mamba layers as they are, and puts back attention and RoPE around them.

    Raises:
        ValueError: the model is not patched, or its Mamba layers were loaded, so that their attention weights are
            gone. Nothing has changed when it is raised.
        TypeError: not a transformers model, such as a PEFT or DDP wrapper around one.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"model is a {type(model).__name__}: unpatch the transformers model itself, which a PEFT wrapper gives as "
            "model.get_base_model() and a DDP one as model.module"
        )
    stored: Any = getattr(getattr(model, "config", None), "longctx", None)
    steps: list[Undo] | None = vars(model).get(STEPS)
    if steps is None and not stored:
        raise ValueError(f"{type(model).__name__} is not patched, so there is nothing to undo: patch it first")
    swaps = [step for step in steps or () if isinstance(step, Swap)]
    hybrid = stored["mamba"] if stored else None
    if hybrid and (steps is None or (mamba and not swaps)):
        raise ValueError(
            f"{type(model).__name__} was saved with Mamba layers ({hybrid}), so the attention weights that they "
            "replaced are gone: load the original model for those, or undo only the rest with "
            "unpatch(model, mamba=False) on a model from hf_longctx.from_pretrained"
        )
    if steps is not None:
        stays = [] if mamba or not hybrid else swaps
        if hybrid and not mamba and not (stored["attention"] or stored["rope"]):
            raise ValueError(
                "mamba is False, but the model has nothing besides its Mamba layers to undo: it is as it should be"
            )
        del vars(model)[STEPS]
        for step in reversed(steps):
            if not any(step is one for one in stays):
                step.undo()
        if hybrid and not mamba:
            rest = {"attention": None, "rope": None, "mamba": hybrid, "backend": "auto", "own_windows": "intersect"}
            adopt(model, rest, healed=stored["healed"], swaps=stays)
        return model
    original = stored_plan(model.config)["original"]
    if original:
        rotary.restore(model, original)
    if model.config._attn_implementation == NAME:
        model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    delattr(model.config, "longctx")
    return model


@contextmanager
def patched(model: Model, **changes: Any) -> Iterator[Model]:
    """Patch a model for the length of a `with` block; the arguments are those of `patch`."""
    patch(model, **changes)
    plan = copy.deepcopy(model.config.longctx)
    try:
        yield model
    finally:
        # Not undone by hand already. Measuring takes a patch off and puts an equal one on again.
        if getattr(model.config, "longctx", None) == plan:
            unpatch(model)


def is_patched(model: Any) -> bool:
    """Whether a model carries a plan."""
    return bool(getattr(getattr(model, "config", None), "longctx", None))


def _check_model(model: Any) -> None:
    from transformers import PreTrainedModel

    name = type(model).__name__
    forward = vars(model).get("forward") if isinstance(model, nn.Module) else None
    compiled = getattr(model, "_compiled_call_impl", None) is not None or hasattr(
        forward, "_torchdynamo_orig_callable"
    )
    if compiled or hasattr(model, "_orig_mod"):
        raise ValueError(f"{name} is compiled: patch the model first, and call torch.compile afterwards")
    if type(model).__module__.split(".")[0] == "peft":
        raise ValueError(f"{name} is a PEFT model: patch the base model first, and add the adapter afterwards")
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"model is a {name}: it must be a transformers causal language model, as AutoModelForCausalLM loads"
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(f"{name} carries a PEFT adapter: patch the model first, and add the adapter afterwards")
    if is_patched(model):
        hybrid = model.config.longctx.get("mamba")
        if hybrid and not any(isinstance(step, Swap) for step in vars(model).get(STEPS) or ()):
            raise ValueError(
                f"{name} was loaded with Mamba layers ({hybrid}), which were made and trained with the attention and "
                "RoPE that it has, so it takes no second patch: give attention= and rope= to convert or distill, "
                "starting from the original model"
            )
        raise ValueError(
            f"{name} is already patched: call hf_longctx.unpatch(model) first, then patch it once with everything"
        )
    if getattr(model.config, "is_encoder_decoder", False) or not model.can_generate():
        raise ValueError(f"{name} is not a causal language model: load the model with AutoModelForCausalLM")
    text = model.config.get_text_config(decoder=True)
    if text is not model.config:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        alone = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(text.model_type)
        raise ValueError(
            f"{name} is more than a language model, and only those can be patched: load its language model alone"
            + (f", transformers.{alone}.from_pretrained(...)" if alone else "")
        )


def _check_attention(
    model: Any, given: Pattern | Layers, backend: str, own_windows: str, mamba: Collection[int]
) -> None:
    """Refuse what patched attention would have to ignore, before anything changes."""
    from hf_longctx.attention import check_backend

    name = type(model).__name__
    if not model._can_set_attn_implementation():
        raise ValueError(
            f"{name} cannot switch its attention function in transformers: only `rope` can be patched on it"
        )
    modules = attention_modules(model)
    if len({*modules, *mamba}) != model.config.num_hidden_layers:
        raise ValueError(
            f"{name} has {model.config.num_hidden_layers} layers, but {len(modules)} attention modules were found: "
            "this architecture is not supported by attention patterns; patch `rope` only"
        )
    plans = plan_layers(model, given, own_windows, mamba)
    sources = key_sources(plans, modules)
    for layer in plans:
        if layer.index in mamba:
            continue
        if layer.kind not in ATTENTION_KINDS:
            raise ValueError(
                f"layer {layer.index} of {name} is of type {layer.kind!r}, whose own mask patched attention cannot "
                f"apply (only {', '.join(ATTENTION_KINDS)}): patch `rope` only"
            )
        module = modules[layer.index]
        if getattr(module, "attn_logit_softcapping", None):
            raise ValueError(
                f"layer {layer.index} of {name} has soft-capped scores, which patched attention does not apply: patch "
                "`rope` only"
            )
        if getattr(module, "is_causal", True) is False:
            raise ValueError(
                f"layer {layer.index} of {name} is not causal: attention patterns are for causal models only"
            )
        source = sources.get(layer.index, layer)
        if source.pattern != layer.pattern and most_kept(source.pattern) is not None:
            raise ValueError(
                f"layer {layer.index} of {name} reads the keys of layer {source.index}, whose cache drops some under "
                f"{source.pattern}, but it computes {layer.pattern}: give both the same pattern"
            )
        size = getattr(module, "head_dim", None) or getattr(module, "qk_head_dim", None)  # the latter DeepSeek's
        check_backend(
            layer.pattern, backend, device=device_of(model), dtype=model.dtype, head_dim=size,
            value_dim=getattr(module, "v_head_dim", size), sinks=has_sinks(module),
        )  # fmt: skip


def _switch(model: Any) -> Implementation:
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    step = Implementation(model, before)
    if any(m.config._attn_implementation != NAME for m in attention_modules(model).values()):
        step.undo()
        raise ValueError(
            f"{type(model).__name__} did not take a new attention function: only `rope` can be patched on it"
        )
    return step
