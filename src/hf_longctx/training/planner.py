"""`plan`: does training a longer window fit a device, and what to do if it does not. From a configuration alone.

The formulas are `memory_model`'s and `activations`'; here they are laid out, added up and tried with other settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

from hf_longctx.hf.rotary import geometry
from hf_longctx.measure.machines import Machine, machine
from hf_longctx.measure.public_models import config_of

from .activations import layer_tokens
from .memory_model import cache_bytes, held, kept_bytes, logits_bytes, moments
from .trained_sizes import Setting, Sizes, sizes
from .tuning import check_tune

#: Share of a device's memory that tensors can have. The rest is left to the driver, CUDA's context, libraries and the
#: allocator's gaps, as the makers' figures are for all of it; an allowance, not measured.
USABLE = 0.95
#: The most devices that sharding is tried on.
MOST_DEVICES = 64


@dataclass(frozen=True)
class Lever:
    """A setting that takes less memory.

    Attributes:
        name: in a word or two.
        what: to do, and what it costs.
        total_bytes: the peak with it and with the levers before it.
        fits: whether that is enough.
    """

    name: str
    what: str
    total_bytes: int
    fits: bool


@dataclass(frozen=True)
class TrainingPlan:
    """What training takes on each device; all in bytes.

    Attributes:
        model: as it was named.
        setting: how it is trained.
        trained: numbers that are trained.
        parameters: of the model.
        weights: trained and frozen.
        gradients: of what is trained.
        optimizer: AdamW's two moments.
        shared: what sharing the work needs: send buffers, or layers gathered from other devices.
        activations_checkpointed: with checkpointing: all layers' inputs, and one layer's inside and gradients.
        activations_kept: without checkpointing.
        logits_tiled: with the loss in tiles.
        logits_whole: with all logits at once.
        attention: gradients and copies while one layer's attention runs backward; part of the activations.
        layer_keys: keys and values of the layer that is computed; part of the activations.
        cache: keys and values of the whole window, when it is read to measure perplexity, before and after.
        moments: what is held at each moment that may be the peak.
        peak: the name of the moment that is.
        total: what is held then.
        device: name of the device.
        memory: of the device.
        usable: what tensors can have of it.
        fits: whether the total is within that.
        levers: what to do where it does not fit: as few as are enough, the least change first.
        advice: one sentence.
    """

    model: str
    setting: Setting
    trained: int
    parameters: int
    weights: int
    gradients: int
    optimizer: int
    shared: int
    activations_checkpointed: int
    activations_kept: int
    logits_tiled: int
    logits_whole: int
    attention: int
    layer_keys: int
    cache: int
    moments: dict[str, int]
    peak: str
    total: int
    device: str
    memory: int
    usable: int
    fits: bool
    levers: tuple[Lever, ...]
    advice: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def plan(
    model: str | Any,
    *,
    to: int,
    tune: str = "lora-plus",
    length: int | None = None,
    pose: bool = False,
    dtype: str | None = None,
    device_memory: str | Machine = "h100",
    devices: int = 1,
    shard: bool = False,
    micro_batch: int = 1,
    rank: int = 8,
    checkpointing: bool = True,
    tile: bool = True,
    device: str = "cuda",
) -> TrainingPlan:
    """Predict the memory of one training step of `extend`, and of measuring before and after.

    On the bundled model the peak was compared with measurement on a CPU (`evals/bench/planner.py`). CUDA's part has
    not been measured.

    Args:
        model: short name of a public model, local folder, `demo`, hub id, or a transformers configuration.
        to: the window asked for, in tokens.
        tune: `full`, `lora` or `lora-plus`.
        length: tokens of a training sequence; default the window, with `pose` the length that the model learned.
        pose: position skipping: learn the window from short sequences.
        dtype: of the weights as loaded, `float32`, `bfloat16` or `float16`; by default what `extend` takes.
        device_memory: a machine such as `h100`, or a size such as `80GB`; of each device.
        devices: how many share the batch.
        shard: whether they share weights, gradients and optimizer too, as FSDP and ZeRO-3 do.
        micro_batch: sequences that a device computes at once.
        rank: of LoRA.
        checkpointing: whether activations are computed again in the backward pass.
        tile: whether the loss is computed in tiles of rows.
        device: `cuda` or `cpu`.

    Raises:
        ValueError: no such model, tuning, dtype, device or size, a number below 1, or a model with recurrent layers.
        ModuleNotFoundError: LoRA without PEFT.

    >>> p = plan("llama-3.1-8b", to=32768, tune="full")
    >>> p.weights, p.gradients, p.optimizer  # 4, 4 and 8 bytes for each of 8.03 billion parameters
    (32121044992, 32121044992, 64242089984)
    >>> p.fits, p.levers[0].name
    (False, 'LoRA-plus')
    """
    from hf_longctx.hf.loading import DTYPES

    check_tune(tune)
    if device not in ("cuda", "cpu"):
        raise ValueError(f"device is {device!r}: it must be cuda or cpu")
    for name, value in (
        ("to", to),
        ("length", length),
        ("devices", devices),
        ("micro_batch", micro_batch),
        ("rank", rank),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}: it must be at least 1")
    if shard and devices == 1:
        raise ValueError("shard needs several devices: give devices=2 or more, or leave shard out")
    cuda = device == "cuda"
    dtype = dtype or ("bfloat16" if cuda and tune != "full" else "float32")
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}: it must be one of {', '.join(DTYPES)}")
    config = (config_of(model) if isinstance(model, str) else model).get_text_config(decoder=True)
    sized = _Model(config)
    length = length or (min(sized.trained_length, to) if pose else to)
    if length > to:
        raise ValueError(f"length is {length}, longer than the window of {to}: a sequence is at most as long")
    limit = device_memory if isinstance(device_memory, Machine) else machine(device_memory)
    how = Setting(
        tune=tune, length=length, window=to, itemsize=4 if dtype == "float32" else 2,
        autocast=cuda or dtype == "bfloat16", cuda=cuda, micro_batch=micro_batch, rank=rank,
        checkpointing=checkpointing, tile=tile, devices=devices, shard=shard,
    )  # fmt: skip
    return _plan(model if isinstance(model, str) else type(model).__name__, sized, how, limit)


class _Model:
    """A configuration, and its sizes under each way of tuning, counted once."""

    def __init__(self, config: Any) -> None:
        self._config, self._sizes = config, dict[tuple[str, int], Sizes]()
        self.trained_length: int = geometry(config).trained

    def sizes(self, how: Setting) -> Sizes:
        key = how.tune, how.rank
        if key not in self._sizes:
            self._sizes[key] = sizes(self._config, *key)
        return self._sizes[key]

    def total(self, how: Setting) -> int:
        """The most that is held at any moment."""
        return max(moments(self.sizes(how), how).values())


def _plan(name: str, model: _Model, how: Setting, limit: Machine) -> TrainingPlan:
    s, usable = model.sizes(how), int(USABLE * limit.memory)
    at, one, always = moments(s, how), layer_tokens(s, how), held(s, how)
    peak = max(at, key=lambda moment: at[moment])
    fits = at[peak] <= usable
    levers = () if fits else _levers(model, how, usable)
    checkpointed, kept = (kept_bytes(s, replace(how, checkpointing=c)) for c in (True, False))
    tiled, whole = (logits_bytes(s, replace(how, tile=t)) for t in (True, False))
    return TrainingPlan(
        model=name,
        setting=how,
        trained=s.trained,
        parameters=s.shape.parameters,
        weights=always.weights,
        gradients=always.gradients,
        optimizer=always.optimizer,
        shared=always.shared,
        activations_checkpointed=checkpointed + one.peak * how.tokens,
        activations_kept=kept + (one.peak - one.saved) * how.tokens,
        logits_tiled=tiled,
        logits_whole=whole,
        attention=one.attention_backward * how.tokens,
        layer_keys=one.keys * how.tokens,
        cache=cache_bytes(s, how),
        moments=at,
        peak=peak,
        total=at[peak],
        device=limit.name,
        memory=limit.memory,
        usable=usable,
        fits=fits,
        levers=levers,
        advice=_advice(at[peak], peak, usable, levers),
    )


# ------------------------------------------------------------------ levers

#: A setting that takes less, or None where there is nothing to change.
Change = Callable[[Setting, _Model, int], Setting | None]


def _smaller(how: Setting, model: _Model, usable: int) -> Setting | None:
    return replace(how, micro_batch=1) if how.micro_batch > 1 else None


def _tiled(how: Setting, model: _Model, usable: int) -> Setting | None:
    return None if how.tile else replace(how, tile=True)


def _checkpointed(how: Setting, model: _Model, usable: int) -> Setting | None:
    return None if how.checkpointing else replace(how, checkpointing=True)


def _shared(how: Setting, model: _Model, usable: int) -> Setting | None:
    return replace(how, shard=True) if how.devices > 1 and not how.shard else None


#: Ways of tuning, from most memory to least.
_HEAVIEST = ("full", "lora-plus", "lora")


def _tuned(tune: str) -> Change:
    def change(how: Setting, model: _Model, usable: int) -> Setting | None:
        if _HEAVIEST.index(how.tune) >= _HEAVIEST.index(tune):
            return None
        # What `extend` loads for LoRA on CUDA.
        return replace(how, tune=tune, itemsize=2 if how.cuda else how.itemsize)

    return change


def _posed(how: Setting, model: _Model, usable: int) -> Setting | None:
    return replace(how, length=model.trained_length) if how.length > model.trained_length else None


def _spread(how: Setting, model: _Model, usable: int) -> Setting | None:
    """Over as few devices as are enough, or else over the most."""
    if how.devices > 1:
        return None
    count = 2
    while count < MOST_DEVICES and model.total(replace(how, shard=True, devices=count)) > usable:
        count *= 2
    return replace(how, shard=True, devices=count)


_SHARE = (
    "share weights, gradients and optimizer over {how.devices} devices by accelerate's configuration (not run with "
    "this package yet)"
)
#: In order of how little they change of what is learned, and of what is needed for it.
_CHANGES: tuple[tuple[str, str, Change], ...] = (
    ("micro-batch of 1", "compute one sequence at a time: --micro-batch 1", _smaller),
    ("tiled loss", "compute the loss in tiles, as extend does unless tile=False", _tiled),
    ("checkpointing", "compute activations again in the backward pass: leave --no-checkpointing out", _checkpointed),
    ("FSDP or ZeRO-3", _SHARE, _shared),
    ("LoRA-plus", "train LoRA, embeddings and norms: --lora-plus", _tuned("lora-plus")),
    ("LoRA", "train LoRA on the attention alone: --lora", _tuned("lora")),
    ("PoSE", "learn the window from short sequences: --pose --length {how.length}", _posed),
    ("FSDP or ZeRO-3 on more devices", _SHARE, _spread),
)
_SPLIT = "sequence parallelism, which splits each sequence over devices and is not in this package"


def _levers(model: _Model, how: Setting, usable: int) -> tuple[Lever, ...]:
    """The fewest levers that are enough, of equally many those that change least; else those that come nearest."""
    best: tuple[Lever, ...] = ()
    for count in range(1, len(_CHANGES) + 1):
        for chosen in combinations(_CHANGES, count):
            tried = tuple(_pull(chosen, model, how, usable))
            if len(tried) < count:
                continue
            if tried[-1].fits:
                return tried
            if not best or tried[-1].total_bytes < best[-1].total_bytes:
                best = tried
    return best


def _pull(chosen: Iterable[tuple[str, str, Change]], model: _Model, how: Setting, usable: int) -> Iterator[Lever]:
    """One lever after the other, up to one that changes nothing or takes no less."""
    total = model.total(how)
    for name, what, change in chosen:
        changed = change(how, model, usable)
        if changed is None or model.total(changed) >= total:
            return
        how, total = changed, model.total(changed)
        yield Lever(name, what.format(how=how), total, total <= usable)


def _advice(total: int, peak: str, usable: int, levers: tuple[Lever, ...]) -> str:
    if total <= usable:
        return f"it fits, with {usable - total:,} bytes to spare"
    missing = f"{total - usable:,} bytes too many, at the moment {peak!r}"
    if not levers or not levers[-1].fits:
        rest = f"{' and '.join(one.name for one in levers)} are not enough; " if levers else ""
        return f"{missing}: {rest}what is left is {_SPLIT}, or a shorter window"
    return f"{missing}: " + "; then ".join(one.what for one in levers)
