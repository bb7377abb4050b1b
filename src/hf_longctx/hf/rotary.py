"""A model's RoPE: what its config says, what a scaling changes in it, and the rotary modules that must follow.

transformers fixes the frequencies when a rotary module is built, so changing the config alone does nothing. Types that
depend on the length (dynamic NTK, LongRoPE) are made inert here and held by `hf/lengths.py`.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_longctx.hf.layer_sizes import layer_config
from hf_longctx.hf.undo import Attributes, Buffers, Undo
from hf_longctx.rope import NoScaling, Scaling, from_parameters, parse

logger = logging.getLogger(__name__)

#: The layer type whose RoPE is scaled where a config nests one dict per layer type.
SCALED_LAYERS = "full_attention"


@dataclass(frozen=True)
class RopeGeometry:
    """The numbers of a config that RoPE scaling needs.

    Attributes:
        dim: rotated dimensions of a head.
        base: rope_theta.
        trained: length in tokens that the frequencies were trained on.
        max_positions: the config's max_position_embeddings.
        current: the scaling that the config already has, if any.
        layer_type: the layer type that is scaled, where the config nests one dict per type.
    """

    dim: int
    base: float
    trained: int
    max_positions: int
    current: Scaling | None
    layer_type: str | None = None


@dataclass(frozen=True)
class RopeChange:
    """What scaling a model's RoPE changes, computed before anything is touched.

    Attributes:
        scaling: the scaling, its target resolved to a factor.
        geometry: the config's numbers before.
        fields: config attributes and their new values.
    """

    scaling: Scaling
    geometry: RopeGeometry
    fields: dict[str, Any]


def parameters_of(config: Any) -> tuple[dict[str, Any], str | None]:
    """The flat rope_parameters that a scaling changes, and their layer type where the config nests them.

    Raises:
        ValueError: the model has no RoPE.
    """
    parameters = getattr(config, "rope_parameters", None)
    if not parameters:
        raise ValueError(
            f"{type(config).__name__} has no rope_parameters: this model has no RoPE to scale; patch it without `rope`"
        )
    if isinstance(parameters.get(SCALED_LAYERS), dict):
        return parameters[SCALED_LAYERS], SCALED_LAYERS
    return parameters, None


def geometry(config: Any) -> RopeGeometry:
    """Read a config's RoPE numbers.

    Raises:
        ValueError: no RoPE, or a rope type that is not a scaling of plain RoPE.
    """
    parameters, layer_type = parameters_of(config)
    kinds = list(getattr(config, "layer_types", None) or ())
    one = layer_config(config, kinds.index(layer_type) if layer_type in kinds else 0)
    head = getattr(one, "head_dim", None) or one.hidden_size // one.num_attention_heads
    maximum = int(config.max_position_embeddings)
    current = from_parameters(parameters, max_positions=maximum)
    original = parameters.get("original_max_position_embeddings")
    if current is None:
        trained = maximum
    elif original:
        trained = int(original)
    elif current.length_dependent:
        trained = maximum
    else:
        # `linear` keeps no original length: its maximum is the stretched one.
        trained = round(maximum / (current.factor or 1))
    return RopeGeometry(
        dim=int(head * parameters.get("partial_rotary_factor", 1.0)),
        base=float(parameters["rope_theta"]),
        trained=trained,
        max_positions=maximum,
        current=current,
        layer_type=layer_type,
    )


def plan(config: Any, rope: str | Scaling) -> RopeChange:
    """Compute what `rope` changes in a config; nothing is touched.

    Raises:
        ValueError: the model has no RoPE, or the new window would be smaller than the present one.
        TypeError: `rope` is neither a scaling nor text.
    """
    scaling = parse(rope)
    now = geometry(config)
    scaling = scaling.resolve(now.trained)
    flat, layer_type = parameters_of(config)
    maximum = scaling.max_positions(now.trained, now.max_positions)
    if now.current is not None:
        if maximum < now.max_positions and not isinstance(scaling, NoScaling) and not scaling.length_dependent:
            raise ValueError(
                f"rope {scaling} would shrink the window: the model has {now.current} over a trained length of "
                f"{now.trained}, {now.max_positions} in all, and a new factor counts from the trained length, giving "
                f"{maximum}; use a factor of at least {now.max_positions / now.trained:g}, or rope 'none' to remove it"
            )
        logger.info(
            "rope %s replaces the model's own %s and counts from its trained length %d, not from %d",
            scaling, now.current, now.trained, now.max_positions,
        )  # fmt: skip

    def fields(new: dict[str, Any]) -> dict[str, Any]:
        nested = new if layer_type is None else {**copy.deepcopy(config.rope_parameters), layer_type: new}
        if layer_type is not None and "truncate" in new:
            # transformers reads `truncate` from the outer dict only.
            nested["truncate"] = new["truncate"]
        changed = {"rope_parameters": nested, "max_position_embeddings": maximum}
        if hasattr(config, "original_max_position_embeddings"):  # Phi-3: it would override the one in the dict
            changed["original_max_position_embeddings"] = now.trained
        return changed

    native = fields(scaling.parameters(flat, dim=now.dim, trained=now.trained))
    if _reads_back(config, native):
        return RopeChange(scaling, now, native)
    if scaling.length_dependent:
        logger.warning(
            "%s cannot state rope %s: a saved checkpoint keeps it in config.longctx only, so load it with "
            "hf_longctx.from_pretrained", type(config).__name__, scaling,
        )  # fmt: skip
        plain = fields(NoScaling().parameters(flat, dim=now.dim, trained=now.trained))
        return RopeChange(scaling, now, plain)
    return RopeChange(scaling, now, fields(scaling.as_longrope(flat, dim=now.dim, trained=now.trained)))


def apply(model: Any, change: RopeChange, steps: list[Undo]) -> None:
    """Write the change into the config and the rotary modules, and prove that the frequencies are what they should be.

    Args:
        model: the model.
        change: what to write.
        steps: each change is added here as it is made, so that whatever fails, the caller can take them back.

    Raises:
        ValueError: no rotary module, or one whose frequencies do not follow.
    """
    config, scaling, numbers = model.config, change.scaling, change.geometry
    modules = rotary_modules(model)
    if not modules:
        raise ValueError(f"{type(model).__name__} has no rotary module to scale; patch it without `rope`")
    steps.append(Attributes(config, change.fields))
    for module in modules:
        state, buffers = _fresh(module, config)
        # An inert type, so that transformers does not change the frequencies between steps of one sequence.
        kind = state["rope_type"]
        state["rope_type"] = (
            {**kind, SCALED_LAYERS: _inert(kind[SCALED_LAYERS])} if isinstance(kind, dict) else _inert(kind)
        )
        if scaling.length_dependent:
            state[_name("attention_scaling", numbers.layer_type)] = scaling.attention_scaling(numbers.trained)
        steps.append(Attributes(module, state))
        steps.append(Buffers(module, buffers))
    if scaling.length_dependent:
        hold(modules, scaling, numbers, numbers.trained)
    if not _proved(modules, change):
        raise ValueError(
            f"rope {scaling}: the rotary module of {type(model).__name__} did not take the frequencies of the "
            "formula, so this model class cannot be scaled; nothing was changed"
        )


def _inert(rope_type: Any) -> Any:
    """The type to give a rotary module so that its forward leaves the frequencies alone."""
    return "default" if rope_type in ("dynamic", "longrope") else rope_type


def restore(model: Any, original: dict[str, Any]) -> None:
    """Write a config's original RoPE fields back and rebuild the frequencies from them."""
    for name, value in original.items():
        setattr(model.config, name, value)
    for module in rotary_modules(model):
        state, buffers = _fresh(module, model.config)
        Attributes(module, state)
        Buffers(module, buffers)


def _fresh(rotary: nn.Module, config: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The plain attributes (type, attention scaling) and the buffers of a rotary module built anew from a config."""
    fresh = type(rotary)(config)
    state = {k: v for k, v in vars(fresh).items() if not k.startswith("_") and k not in ("training", "config")}
    return state, {name: value for name, value in fresh._buffers.items() if value is not None}


def rotary_modules(model: nn.Module) -> list[nn.Module]:
    """The modules that hold RoPE frequencies of the text model."""
    return [
        module
        for module in model.modules()
        if any(name == "inv_freq" or name == f"{SCALED_LAYERS}_inv_freq" for name in module._buffers)
        and hasattr(module, "config")
    ]


def frequencies(module: nn.Module) -> torch.Tensor:
    """The frequencies (dim/2,) that a rotary module uses, of the scaled layer type where there are several."""
    nested = f"{SCALED_LAYERS}_inv_freq"
    return getattr(module, nested if nested in module._buffers else "inv_freq")


def hold(modules: list[nn.Module], scaling: Scaling, numbers: RopeGeometry, length: int) -> None:
    """Write the frequencies for `length` into the buffers of length-dependent rotary modules."""
    values = table(scaling, numbers, length)
    for module in modules:
        frequencies(module).copy_(values)


def table(scaling: Scaling, numbers: RopeGeometry, length: int) -> torch.Tensor:
    """The frequencies (dim/2,) float32 of a sequence of `length` tokens."""
    return scaling.inv_freq(numbers.dim, numbers.base, numbers.trained, length).float()


def original_geometry(config: Any) -> RopeGeometry:
    """The geometry before the patch, from the originals that the plan stores."""
    before = copy.copy(config)
    for name, value in config.longctx["original"].items():
        setattr(before, name, value)
    return geometry(before)


def _proved(modules: list[nn.Module], change: RopeChange) -> bool:
    now = change.geometry
    expected = change.scaling.inv_freq(now.dim, now.base, now.trained, now.trained)
    scaling = change.scaling.attention_scaling(now.trained)
    return all(
        torch.allclose(frequencies(m).double().cpu(), expected, rtol=1e-5, atol=0)
        and abs(float(getattr(m, _name("attention_scaling", now.layer_type))) - scaling) < 1e-6 * scaling
        for m in modules
    )


def _reads_back(config: Any, fields: dict[str, Any]) -> bool:
    """Whether the config's class, given these fields in a config.json, keeps them as they are."""
    from huggingface_hub.errors import StrictDataclassError

    stated = {**config.to_dict(), **copy.deepcopy(fields)}
    try:
        read = type(config).from_dict(stated)
    except (StrictDataclassError, ValueError, KeyError, TypeError):
        return False
    return all(getattr(read, name) == value for name, value in fields.items())


def _name(attribute: str, layer_type: str | None) -> str:
    return attribute if layer_type is None else f"{layer_type}_{attribute}"
