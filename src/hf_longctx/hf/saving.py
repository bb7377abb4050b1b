"""Loading a checkpoint of a patched model: its plan is in config.json, and is applied again. Settling it for good."""

from __future__ import annotations

import copy
import os
from typing import Any

from hf_longctx.hf import adapters, mixers
from hf_longctx.hf.attention import NAME, arguments, stored_plan
from hf_longctx.hf.patching import adopt, patch, unpatch
from hf_longctx.hf.undo import STEPS
from hf_longctx.mamba.mamba2 import parse as parse_mamba
from hf_longctx.rope import parse as parse_rope

#: Arguments that say where a checkpoint is and who asks, for config and weights alike; those that adapters know too.
_ADAPTER = ("revision", "token", "cache_dir", "local_files_only")
_HUB = (*_ADAPTER, "subfolder", "force_download", "proxies", "trust_remote_code", "code_revision")
#: Arguments of the model that a config would take for its own.
_OF_MODEL = ("dtype", "torch_dtype", "quantization_config", "attn_implementation")


def from_pretrained(path: str, **kwargs: Any) -> Any:
    """Load a causal language model and apply the plan that its config carries, if any. It never scales twice.

    `model.save_pretrained(path)` writes the plan; nothing else is needed. An adapter that carries its RoPE, by
    folder or hub id, gives the base model that it names, patched so, with the adapter merged into it; any other
    adapter its base model with the adapter on it, as transformers does.

    Args:
        path: local folder or hub id.
        **kwargs: as for `AutoModelForCausalLM.from_pretrained`: `dtype`, `device_map`, `attn_implementation` (of the
            layers that the plan leaves as they are), `subfolder`, `revision`, `config`, fields of the config, ...

    Returns:
        The model, patched as it was saved; `unpatch` works on it. With `output_loading_info=True` the pair that
        transformers returns.

    Raises:
        TypeError: a `config` that is none.
        ValueError: the plan is of another version, the config was changed since it was saved, or one is given that
            has other Mamba layers than the weights.
    """
    from transformers import AutoModelForCausalLM

    hub = {k: kwargs[k] for k in _HUB if k in kwargs}
    shared = {k: v for k, v in hub.items() if k in _ADAPTER}
    if (document := adapters.alone(path, shared)) is not None:
        kwargs.pop("revision", None)  # of the adapter, not of the base that it names
        return adapters.with_base(path, document, shared, **kwargs)
    config, kwargs = _config(path, hub, kwargs)
    if not getattr(config, "longctx", None):
        return AutoModelForCausalLM.from_pretrained(path, config=config, **kwargs)
    healed = bool(config.longctx.get("healed"))
    written = {name: getattr(config, name) for name in stored_plan(config)["original"]}
    plan = take_plan(config)
    if plan["mamba"]:
        model, info = _load_hybrid(path, config, plan["mamba"], kwargs)
        adopt(model, plan, healed=healed)
        loaded = (model, info) if kwargs.get("output_loading_info") else model
    else:
        loaded = AutoModelForCausalLM.from_pretrained(path, config=config, **kwargs)
        model = loaded[0] if kwargs.get("output_loading_info") else loaded
        patch(model, **plan)
    for name, value in written.items():
        if getattr(model.config, name) != value:
            raise ValueError(
                f"config.{name} of {path} is {value}, but its plan (rope {plan['rope']}) gives "
                f"{getattr(model.config, name)}: it was edited after saving; remove `longctx` from config.json to use "
                "it as is"
            )
    return loaded


def _config(path: str, hub: dict[str, Any], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The config to load by, and what is left of the keyword arguments once its fields are taken out of them.

    As `AutoModelForCausalLM` does it: a config is given whole, or read and its fields replaced by arguments.

    Returns:
        A config of our own, which may be changed.
    """
    from transformers import AutoConfig, PreTrainedConfig

    kwargs = dict(kwargs)
    if kwargs.get("attn_implementation") == NAME:  # `patch` sets it; unpatching must lead back to an ordinary one
        del kwargs["attn_implementation"]
    given, asked = kwargs.pop("config", None), "longctx" in kwargs
    if given is None:
        of_model = {k: kwargs.pop(k) for k in _OF_MODEL if k in kwargs}
        config, rest = AutoConfig.from_pretrained(path, return_unused_kwargs=True, **kwargs)
        kwargs = {**rest, **hub, **of_model}
    elif isinstance(given, PreTrainedConfig):
        config = copy.deepcopy(given)
    elif isinstance(given, str | os.PathLike):
        elsewhere = {k: v for k, v in hub.items() if k not in ("revision", "subfolder")}
        config = AutoConfig.from_pretrained(given, **elsewhere)
    else:
        raise TypeError(f"config is a {type(given).__name__}: give a transformers config, its folder, or nothing")
    if (given is not None or asked) and (saved := _saved_mamba(path, hub)) is not None:
        [kept], wanted = saved, _mamba(config)
        if kept != wanted:
            raise ValueError(
                f"config has mamba={wanted!r}, but the weights of {path} were saved with mamba={kept!r}: leave config "
                "and longctx out, or change a config that transformers.AutoConfig.from_pretrained read from there"
            )
    return config, kwargs


def _saved_mamba(path: str, hub: dict[str, Any]) -> tuple[str | None] | None:
    """The Mamba layers that the weights were saved with; None where there is no config beside them."""
    from transformers import AutoConfig

    try:
        return (_mamba(AutoConfig.from_pretrained(path, **hub)),)
    except OSError:
        return None


def _mamba(config: Any) -> str | None:
    return (getattr(config, "longctx", None) or {}).get("mamba")


def _load_hybrid(path: str, config: Any, mamba: str, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Load a model some of whose layers are Mamba layers: they are put in place before the weights come.

    Returns:
        The model, of its own class, and what transformers says about the loading.

    Raises:
        ValueError: an architecture that cannot be converted, or weights of Mamba layers that are not there.
    """
    from transformers import AutoModelForCausalLM

    plan = parse_mamba(mamba)
    classes = AutoModelForCausalLM._model_mapping
    if type(config) not in classes:
        raise ValueError(
            f"{path} was saved with Mamba layers by another version: {type(config).__name__} has none here"
        )
    own = classes[type(config)]

    class Hybrid(own):  # type: ignore[misc, valid-type]
        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            mixers.swap(self, plan, mixers.check(self, plan), empty=True)
            self._keep_in_fp32_modules_strict.update(mixers.EXACT)

    # What it prints and writes is to name the model's own class, which it is again when loaded.
    Hybrid.__name__, Hybrid.__qualname__, Hybrid.__module__ = own.__name__, own.__qualname__, own.__module__
    model, info = Hybrid.from_pretrained(path, config=config, **{**kwargs, "output_loading_info": True})
    model.__class__ = own
    names = {name for i in mixers.mixers(model) for name in info["missing_keys"] if f".{i}." in name}
    if names:
        raise ValueError(
            f"{path} lacks weights of its Mamba layers ({', '.join(sorted(names)[:3])}): it was not saved by "
            "model.save_pretrained after the conversion; convert the original model again"
        )
    return model, info


def planned_skeleton(config: Any) -> Any:
    """The patched model that a saved configuration describes, without memory: for `describe`.

    Args:
        config: of a patched model; its plan is taken out.
    """
    from hf_longctx.hf.loading import skeleton

    healed = bool(config.longctx.get("healed"))
    plan = take_plan(config)
    model = skeleton(config)
    if plan["mamba"] is None:
        return patch(model, **plan)
    mamba = parse_mamba(plan["mamba"])
    mixers.swap(model, mamba, mixers.check(model, mamba), empty=True)
    return adopt(model, plan, healed=healed)


def take_plan(config: Any) -> dict[str, Any]:
    """Take the plan out of a config, which is left as before the patch.

    Args:
        config: of a patched model; changed in place.

    Returns:
        Keyword arguments of `patch` that make it again.

    Raises:
        ValueError: no plan, or one that this version cannot read. The config is unchanged.
    """
    stored = stored_plan(config)
    for name, value in stored["original"].items():
        setattr(config, name, copy.deepcopy(value))
    delattr(config, "longctx")
    return arguments(stored)


def settle_rope(model: Any, *, window: int | None = None) -> None:
    """Make a patch's RoPE the model's own, for weights that were trained under it; its attention is undone.

    Afterwards the model is not patched: it loads anywhere with this RoPE, and may be patched with a pattern.

    Args:
        model: a patched model; changed in place.
        window: the max_position_embeddings to write, where it is not what the scaling's factor makes.

    Raises:
        ValueError: no RoPE was patched, or one that a config cannot state.
    """
    rope = stored_plan(model.config)["rope"]
    if rope is None or parse_rope(rope).length_dependent:
        raise ValueError(f"rope {rope} cannot become the model's own: patch a fixed scaling such as yarn:4")
    unpatch(model)
    patch(model, rope=rope)
    del vars(model)[STEPS]
    delattr(model.config, "longctx")
    if window is not None:
        model.config.max_position_embeddings = window
