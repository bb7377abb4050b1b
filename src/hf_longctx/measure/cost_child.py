"""One cost measurement, in a process of its own: `python -m hf_longctx.measure.cost_child TASK.json RESULT.json`.

The first run is not timed: it warms up kernels, and its memory is measured. The runs after it are timed. The last
token's logits alone are made, and the end of a text stops nothing.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_longctx.hf.cache_argument import cache_name, cache_of
from hf_longctx.hf.lengths import held_length, length_dependent

from .memory import Meter, is_out_of_memory, limited, returning


@dataclass(frozen=True)
class Task:
    """What to measure.

    Attributes:
        model: hub id, local folder or `demo`.
        dtype: or None for the default.
        device: or None for the default.
        definition: what `patch` is given, in text form; empty leaves the model alone. What a folder was saved patched
            with is undone first, but for Mamba layers.
        implementation: transformers' attention function, or None for the one that it chooses.
        length: tokens of the prompt.
        steps: tokens decoded after it.
        repeats: timed runs.
        chunk: rows of one forward of the prompt; None reads it at once.
        seed: of the random prompt.
        memory: bytes past which allocations fail; None for no limit.
    """

    model: str
    dtype: str | None
    device: str | None
    definition: dict[str, str]
    implementation: str | None
    length: int
    steps: int
    repeats: int
    chunk: int | None
    seed: int
    memory: int | None


def measure(task: Task) -> dict[str, Any]:
    """Load, patch, run.

    Args:
        task: what to measure.

    Returns:
        `outcome` (`ok` or `oom`), and for `ok` what `run_cost` says of a row's figures, raw.

    Raises:
        ValueError: a model or definition that cannot work.
    """
    from hf_longctx.hf.loading import default_device, load_weights

    from .variants import Variant

    device = torch.device(task.device) if task.device else default_device()
    try:
        with limited(device, task.memory):
            model = load_weights(task.model, dtype=task.dtype, device=device)
            from .subject import as_loaded, patched_as

            with as_loaded(model):
                if task.implementation is not None:
                    model.set_attn_implementation(task.implementation)
                with patched_as(model, Variant("measured", **task.definition)):
                    return {"outcome": "ok", "reason": None, **_measured(model, task)}
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return {"outcome": "oom", "reason": str(error).strip().splitlines()[0][:300] or "out of memory"}


@torch.no_grad()
def _measured(model: Any, task: Task) -> dict[str, Any]:
    from hf_longctx import describe

    described = describe(model)
    generator = torch.Generator().manual_seed(task.seed)
    low = min(10, model.config.vocab_size - 1)
    ids = torch.randint(low, model.config.vocab_size, (1, task.length), generator=generator).to(model.device)
    total = task.length + task.steps
    held = held_length(model, total) if length_dependent(model) else contextlib.nullcontext()
    with held:
        _touch(model)
        with returning():
            _run(model, ids[:, :8], 2, None)  # what is made once and kept is no part of the prompt's memory
            meter = Meter(model.device)
            marks: list[int] = []
            first = _run(model, ids, task.steps, task.chunk, after_prefill=lambda: marks.append(meter.peak()))
            counted, storage = cache_bytes(first.cache)
            first.cache = None
        runs = []
        for _ in range(task.repeats):
            run = _run(model, ids, task.steps, task.chunk)
            run.cache = None
            runs.append(run)
    return {
        "first_seconds": first.prefill,
        "prefill_seconds": [run.prefill for run in runs],
        "decode_seconds": [run.decode for run in runs],
        "baseline_bytes": meter.before,
        "prefill_peak_bytes": marks[0],
        "working_bytes": marks[0] - meter.before if meter.exact else None,
        "peak_bytes": meter.peak(),
        "reserved_bytes": meter.reserved(),
        "cache_bytes": counted,
        "cache_storage_bytes": storage,
        "described_bytes": described.cache_bytes(total),
        "weight_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "device": model.device.type,
        "threads": torch.get_num_threads(),
        "implementation": described.implementation,
        "backends": {layer.pattern: layer.backend for layer in described.layers},
    }


@dataclass
class _Run:
    """One prompt read and `steps` tokens decoded: seconds, and the cache in the end."""

    prefill: float
    decode: float
    cache: Any


def _run(model: Any, ids: torch.Tensor, steps: int, chunk: int | None, after_prefill: Any = None) -> _Run:
    length = ids.shape[1]
    cache, token = None, ids[:, :1]
    start = time.perf_counter()
    for begin in range(0, length, chunk or length):
        token, cache = _forward(model, ids[:, begin : begin + (chunk or length)], cache, begin)
    int(token)  # the first token is there: the device has been waited for
    prefill = time.perf_counter() - start
    if after_prefill is not None:
        after_prefill()
    start = time.perf_counter()
    for step in range(steps):
        token, cache = _forward(model, token, cache, length + step)
    int(token)
    return _Run(prefill, time.perf_counter() - start, cache)


def _forward(model: Any, ids: torch.Tensor, cache: Any, at: int) -> tuple[torch.Tensor, Any]:
    """The next token (1, 1), greedy, and the cache."""
    places = torch.arange(at, at + ids.shape[1], device=ids.device)[None]
    out = model(input_ids=ids, position_ids=places, use_cache=True, logits_to_keep=1, **{cache_name(): cache})
    return out.logits[:, -1:].argmax(-1), cache_of(out)


def _touch(model: Any) -> None:
    """Read a number of every page of the weights: those mapped from a file are not in memory before."""
    for parameter in model.parameters():
        if parameter.device.type == "cpu":
            parameter.detach().reshape(-1)[:: 4096 // parameter.element_size()].sum()


def cache_bytes(cache: Any) -> tuple[int, int]:
    """Bytes of a cache, counted from its tensors.

    Args:
        cache: what a model returned.

    Returns:
        Bytes that the cache keeps: the tensors of transformers' layers, and of this package's the buffers with their
        slack. And bytes of the memory behind them, which is more where a tensor is a view: after a prompt a window
        layer of transformers keeps all keys in memory until the next token.
    """
    from hf_longctx.hf.eviction import EvictingLayer

    kept, storages = 0, {}
    for layer in cache.layers:
        for tensor in (one for name in _STATES for one in _tensors(getattr(layer, name, None))):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            kept += storage.nbytes() if isinstance(layer, EvictingLayer) else tensor.nbytes
    return kept, sum(storages.values())


#: Where the layers of caches hold their tensors.
_STATES = ("keys", "values", "slots", "conv_states", "recurrent_states")


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def main(task: str, result: str) -> None:
    """Measure what a file says, and write what was found to another."""
    found = measure(Task(**json.loads(Path(task).read_text(encoding="utf-8"))))
    Path(result).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
