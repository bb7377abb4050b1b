"""`describe`: what every layer of a model sees, how it is computed, and what its cache costs."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from hf_longctx.hf import rotary
from hf_longctx.hf.attention import NAME, stored_plan
from hf_longctx.hf.cache_size import crossover, layer_bytes, most_keys, state_bytes, token_bytes
from hf_longctx.hf.layer_sizes import layer_config
from hf_longctx.hf.layers import attention_modules, device_of, has_sinks, plan_layers
from hf_longctx.hf.mixers import UNHEALED, CachedMixer, mixers
from hf_longctx.hf.undo import STEPS
from hf_longctx.mamba.mamba2 import parse as parse_mamba
from hf_longctx.patterns import parse, reach_through
from hf_longctx.patterns.layers import ATTENTION_KINDS
from hf_longctx.patterns.share import percent, visible_share
from hf_longctx.plan import LayerPlan
from hf_longctx.rope import from_parameters
from hf_longctx.rope import parse as parse_rope

#: What a layer with a state in the place of keys and values is called.
MAMBA = "mamba2"
_IDLE = "config.longctx holds a plan that is not in force here: load the checkpoint with hf_longctx.from_pretrained"


@dataclass(frozen=True)
class LayerDescription:
    """One layer.

    Attributes:
        index: the layer.
        kind: its layer type in the config.
        mixer: `attention` or `mamba2`.
        rope: the scaling of this layer's RoPE, in text form, or `none`.
        pattern: what is computed, in text form; of a Mamba-2 layer from what it started.
        given: the pattern that the plan gives it, None where the layer is stock.
        own_window: the window that it has of its own, in keys.
        backend: how it is computed (at the model's full length), or transformers' implementation where stock.
        share: visible pairs over those of full causal attention at the length that the config claims; None for
            Mamba-2, for a pattern of which only the rule is known, and where no length is claimed.
        reach: the largest distance in tokens that information travels in this layer; None where unbounded.
        reach_so_far: the same through this layer and all below it.
        kv_bytes: bytes of keys and values that one token adds to its cache.
        state_bytes: bytes that a Mamba-2 layer holds for one sequence, whatever its length; 0 for attention.
        crossover: tokens from which on the attention layer in its place would hold more; None for attention.
        cache_keys: the most keys that its cache holds for one sequence, slack included, because it drops what no later
            query sees; None where it drops nothing.
    """

    index: int
    kind: str
    mixer: str
    rope: str
    pattern: str
    given: str | None
    own_window: int | None
    backend: str
    share: float | None
    reach: int | None
    reach_so_far: int | None
    kv_bytes: int
    state_bytes: int
    crossover: int | None
    cache_keys: int | None


@dataclass(frozen=True)
class Description:
    """A model as `describe` sees it; `str` gives a table, `to_dict` plain data.

    Attributes:
        model: the model's class.
        patched: whether it carries a plan that is in force.
        note: what is amiss with its plan, None if nothing.
        rope: the scaling in force, in text form, or `none`.
        trained: length in tokens that RoPE counts from, None without RoPE.
        max_positions: the window that the config claims.
        implementation: transformers' name of the attention function.
        reach: the largest distance that information travels through all layers; None where unbounded.
        kv_bytes: bytes of keys and values that one token adds to the cache, all layers together.
        state_bytes: bytes of states that one sequence holds, whatever its length.
        healed: whether Mamba-2 layers have been trained since they were converted; None without any.
        layers: one entry a layer.
    """

    model: str
    patched: bool
    note: str | None
    rope: str
    trained: int | None
    max_positions: int | None
    implementation: str
    reach: int | None
    kv_bytes: int
    state_bytes: int
    healed: bool | None
    layers: tuple[LayerDescription, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def cache_bytes(self, tokens: int) -> int:
        """Bytes that the cache of one sequence takes after `tokens` tokens, slack, slot numbers and states included.

        Args:
            tokens: tokens seen, prompt and generated ones.

        Raises:
            ValueError: a negative number.
        """
        if tokens < 0:
            raise ValueError(f"tokens is {tokens}: it must be at least 0, such as 32768")
        evicting = self.implementation == NAME
        keys = sum(layer_bytes(tokens, one.kv_bytes, one.cache_keys, evicting=evicting) for one in self.layers)
        return keys + (self.state_bytes if tokens else 0)

    def __str__(self) -> str:
        header = (
            "layer",
            "type",
            "rope",
            "pattern",
            "own window",
            "backend",
            *([] if self.max_positions is None else [f"sees at {self.max_positions:,}"]),
            "reach",
            "reach so far",
            "KV bytes/token",
            "cache holds",
        )
        rows = [header]
        for first, last in self._runs():
            label = str(first.index) if first is last else f"{first.index}-{last.index}"
            reach = (_distance(first.reach), _distance(last.reach_so_far))
            share = [] if self.max_positions is None else [percent(first.share)]
            own = "-" if first.own_window is None else f"{first.own_window:,}"
            holds = "all keys" if first.cache_keys is None else f"{first.cache_keys:,} keys"
            holds = f"{first.state_bytes:,} bytes" if first.state_bytes else holds
            seen = (first.pattern, own, first.backend, *share, *reach)
            rows.append((label, first.kind, first.rope, *seen, f"{first.kv_bytes:,}", holds))
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        total = "unbounded" if self.reach is None else f"{self.reach:,} tokens"
        claim = "" if self.max_positions is None else f", {self.max_positions:,} positions claimed"
        trained = "" if self.trained is None else f", {self.trained:,} trained"
        state = "patched" if self.patched else "stock"
        return "\n".join(
            [
                *([f"note: {self.note}"] if self.note else []),
                f"{self.model} ({state}): rope {self.rope}{trained}{claim}",
                *lines,
                f"reach through {len(self.layers)} layers: {total}; cache: {self.kv_bytes:,} bytes a token",
                *self._states(),
            ]
        )

    def _states(self) -> list[str]:
        """What Mamba-2 layers hold, from which length that is less than keys and values, and what they are worth."""
        layers = [layer for layer in self.layers if layer.mixer == MAMBA]
        if not layers:
            return []
        tokens = max(layer.crossover or 0 for layer in layers)
        count = f"{len(layers)} Mamba-2 layer{'s' * (len(layers) > 1)}"
        lines = [
            f"{count}: {self.state_bytes:,} bytes of state a sequence, whatever its length; less than the keys and "
            f"values of as many attention layers from {tokens:,} tokens on"
        ]
        return lines if self.healed else [*lines, f"quality: {UNHEALED}"]

    __repr__ = __str__

    def _runs(self) -> list[tuple[LayerDescription, LayerDescription]]:
        """Runs of layers that are equal but for what lies below them, as (first, last)."""
        place = {"index": 0, "reach_so_far": 0}
        runs: list[tuple[LayerDescription, LayerDescription]] = []
        for layer in self.layers:
            if runs and asdict(runs[-1][0]) | place == asdict(layer) | place:
                runs[-1] = (runs[-1][0], layer)
            else:
                runs.append((layer, layer))
        return runs


def describe(model: Any) -> Description:
    """Say what each layer of a model attends to, patched or not.

    Args:
        model: a transformers causal language model; a PEFT model is looked through.

    Raises:
        TypeError: not a transformers model.
        ValueError: a model without attention layers.
    """
    from transformers import PreTrainedModel

    from hf_longctx.attention import choose

    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"model is a {type(model).__name__}: it must be a transformers model, such as AutoModelForCausalLM loads"
        )
    config = model.config
    stored = stored_plan(config) if getattr(config, "longctx", None) else None
    implementation = config._attn_implementation
    idle = stored is not None and _idle(stored, model)
    asked = stored["attention"] if stored and not idle else None
    modules, states = attention_modules(model), mixers(model)
    plans = plan_layers(
        model, parse(asked) if asked else None, stored["own_windows"] if stored else "intersect", tuple(states)
    )
    try:
        rope = rotary.geometry(config)
    except ValueError:
        rope = None
    scaling = (stored or {}).get("rope") or (str(rope.current) if rope and rope.current else "none")
    device = device_of(model)
    claimed = getattr(config, "max_position_embeddings", None)
    layers = []
    for depth, plan in enumerate(plans, start=1):
        so_far = _finite(reach_through([p.pattern for p in reversed(plans[:depth])]))
        if plan.index in states:
            layers.append(_state_layer(model, plan, states[plan.index], stored or {}, scaling))
            continue
        backend = implementation
        if implementation == NAME and stored:
            backend = stored["backend"]
            if backend == "auto":
                sinks = has_sinks(modules.get(plan.index))
                backend, _ = choose(
                    plan.pattern, n=config.max_position_embeddings, device=device, dtype=model.dtype, sinks=sinks
                )
        layers.append(
            LayerDescription(
                index=plan.index,
                kind=plan.kind,
                mixer="attention",
                rope=_layer_rope(config, plan.kind, scaling),
                pattern=str(plan.pattern),
                given=None if plan.given is None else str(plan.given),
                own_window=plan.own,
                backend=backend,
                share=visible_share(plan.pattern, claimed) if claimed else None,
                reach=_finite(plan.pattern.reach(1)),
                reach_so_far=so_far,
                kv_bytes=token_bytes(layer_config(config, plan.index), model.dtype.itemsize, modules.get(plan.index))
                if plan.kind in ATTENTION_KINDS
                else 0,
                state_bytes=0,
                crossover=None,
                cache_keys=most_keys(plan, evicting=implementation == NAME),
            )
        )
    return Description(
        model=type(model).__name__,
        patched=stored is not None and not idle,
        note=_IDLE if idle else None,
        rope=scaling,
        trained=_trained(config, rope, stored),
        max_positions=claimed,
        implementation=implementation,
        reach=_finite(reach_through([p.pattern for p in reversed(plans)])),
        kv_bytes=sum(layer.kv_bytes for layer in layers),
        state_bytes=sum(layer.state_bytes for layer in layers),
        healed=bool(stored["healed"]) if states and stored else None,
        layers=tuple(layers),
    )


def _state_layer(
    model: Any, plan: LayerPlan, mixer: CachedMixer, stored: dict[str, Any], scaling: str
) -> LayerDescription:
    """A Mamba-2 layer."""
    held = state_bytes(mixer.form, model.dtype.itemsize)
    per_token = 2 * mixer.form.kv_heads * mixer.form.head_dim * model.dtype.itemsize
    named = (getattr(model.config, "layer_types", None) or {plan.index: rotary.SCALED_LAYERS})[plan.index]
    return LayerDescription(
        index=plan.index,
        kind=plan.kind,
        mixer=MAMBA,
        rope=_layer_rope(model.config, named, scaling) if mixer.form.rope else "none",
        pattern=f"{MAMBA} from {parse_mamba(stored['mamba']).init}",
        given=None,
        own_window=None,
        backend="ssd",
        share=None,
        reach=None,
        reach_so_far=None,
        kv_bytes=0,
        state_bytes=held,
        crossover=crossover(held, per_token),
        cache_keys=None,
    )


def _idle(stored: dict[str, Any], model: Any) -> bool:
    """Whether a stored plan is not at work, because plain transformers loaded the checkpoint."""
    if stored["mamba"] and not mixers(model):
        return True
    if stored["attention"]:
        return model.config._attn_implementation != NAME
    return STEPS not in vars(model) and parse_rope(stored["rope"]).length_dependent


def _trained(config: Any, rope: rotary.RopeGeometry | None, stored: dict[str, Any] | None) -> int | None:
    if stored and stored["original"]:
        return rotary.original_geometry(config).trained
    return rope.trained if rope else None


def _layer_rope(config: Any, kind: str, scaling: str) -> str:
    """The scaling of a layer of type `kind`, given that of the scaled layers."""
    own = (getattr(config, "rope_parameters", None) or {}).get(kind)
    if kind == rotary.SCALED_LAYERS or not isinstance(own, dict):
        return scaling
    native = from_parameters(own, max_positions=config.max_position_embeddings)
    return "none" if native is None else str(native)


def _distance(tokens: int | None) -> str:
    return "unbounded" if tokens is None else f"{tokens:,}"


def _finite(reach: float) -> int | None:
    return None if math.isinf(reach) else int(reach)
