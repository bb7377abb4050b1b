"""What a length really costs: time, memory and cache, each measured in a process of its own, beside the cost model."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hf_longctx.hf.architecture import Architecture, architecture
from hf_longctx.hf.loading import check_place, load_config, skeleton
from hf_longctx.hf.saving import planned_skeleton, take_plan
from hf_longctx.patterns import parse

from .cost_child import Task
from .cost_model import FLASH, STANDARD, Method, cost
from .environment import free_memory, hardware, origin
from .rows import row_key
from .store import RunStore
from .subject import look_at
from .variants import AS_LOADED, STOCK, Variant, as_variants

logger = logging.getLogger(__name__)

#: The name of the untouched model under standard attention, whose scores are stored.
EAGER = "standard"
TIMEOUT = 600.0
"""Seconds that one measurement may take, loading included."""
UNMEASURED = ("oom", "timeout", "skipped")
"""Outcomes that another machine, or more patience, may change."""


def run_cost(
    model: str,
    *,
    variants: Iterable[str | Variant] | Mapping[str, Mapping[str, str]] = (),
    lengths: Sequence[int],
    repeats: int = 3,
    steps: int = 16,
    chunk: int | None = None,
    seed: int = 0,
    dtype: str | None = None,
    device: str | None = None,
    memory: int | None = None,
    timeout: float = TIMEOUT,
    out: str | Path | None = None,
    stock: bool = True,
    standard: bool = True,
    retry: bool = False,
    on_row: Callable[[dict[str, Any]], None] | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Measure what a model and patched variants of it cost at each length.

    Every variant and length runs in a process of its own, on random tokens, so that its memory is its own and running
    out of it is a result. The first run of each is not timed; its memory is measured.

    Args:
        model: hub id, local folder or `demo`; a name, since other processes load it. A folder that was saved patched
            runs as the variant `as-loaded`, beside the model without its plan and the variants; one with Mamba layers,
            behind which there is no such model, runs alone, with `stock` and `standard` left out.
        variants: what to compare, such as `"window: attention=window:1024+global:4"`.
        lengths: tokens of the prompts.
        repeats: timed runs, at least 1.
        steps: tokens decoded after the prompt, at least 1.
        chunk: rows of one forward of the prompt; None reads it at once, as `generate` does.
        seed: of the random tokens.
        dtype: as for `load_model`.
        device: `cpu` or `cuda`.
        memory: bytes that a process may take; past it a row says `oom`. None takes what is free on a CPU. A run that
            goes on may change it, and `timeout`: neither changes a figure.
        timeout: seconds for one variant and length, loading included.
        out: folder for `cost.jsonl` and `cost.json`; a run that was stopped goes on there. None keeps nothing.
        stock: whether the untouched model runs, with the attention that transformers chooses for it.
        standard: whether it also runs with standard attention (transformers' `eager`), whose n x n scores are stored.
        retry: whether rows of an earlier run that ended in `oom`, `timeout` or `skipped` are measured again; those in
            `error` always are.
        on_row: called with each new row.
        command: how the user started this; kept in `cost.json`.

    Returns:
        `{"settings", "versions", "hardware", "started", "command", "variants", "rows"}`. A row has `variant`,
        `length`, `outcome` (`ok`; `oom`; `timeout`; `skipped`: a shorter length of the variant ran out already;
        `error`), `reason`, and `memory_limit`, the bytes that it was given. Where it is `ok`, `ttft_seconds`,
        `prefill_tokens_per_second` and `decode_tokens_per_second` (at that depth) are `{"median", "low", "high",
        "values"}` with quartiles, and in bytes there are `peak_bytes` (of all runs, weights and libraries included),
        `working_bytes` (the most that the prefill took beside what was there before, None where the system does not
        tell), `weight_bytes`, `reserved_bytes` (CUDA's allocator), `cache_bytes` (counted from the tensors, after the
        last token), `described_cache_bytes` (what `describe` says) and `cache_storage_bytes` (memory behind those
        tensors). Every row but one with an `error` has what the cost model says: `modelled_working_bytes`,
        `modelled_peak_bytes`, which are these and the weights, without the libraries, and `modelled_cache_bytes`,
        after the last token.

    Raises:
        ValueError: settings that cannot work, before anything has run, or a folder with another run.
    """
    for name, value in (("repeats", repeats), ("steps", steps), ("chunk", chunk), ("memory", memory)):
        if value is None and name in ("chunk", "memory"):
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}: it must be a whole number of at least 1")
    if timeout <= 0:
        raise ValueError(f"timeout is {timeout}: it must be more than 0 seconds")
    if not lengths or min(lengths) < 1:
        raise ValueError(f"lengths is {list(lengths)}: give at least one, each at least 1 token")
    check_place(dtype, device)
    config = load_config(model)
    saved = Variant(AS_LOADED, **take_plan(config)) if getattr(config, "longctx", None) else None
    subjects = _subjects(variants, saved, stock=stock, standard=standard)
    alone = saved is not None and saved.mamba is not None
    network = planned_skeleton(load_config(model)) if alone else skeleton(config)
    facts = {subject.name: look_at(network, subject.variant) for subject in subjects}
    settings = {
        "model": model, "dtype": dtype, "device": device, "repeats": repeats, "steps": steps, "chunk": chunk,
        "seed": seed,
    }  # fmt: skip
    bounds = _Bounds(memory, timeout)
    store = RunStore(
        Path(out) if out is not None else None,
        settings,
        origin(command),
        name="cost",
    )
    sizes = architecture(config)
    with contextlib.closing(store):
        for subject in subjects:
            implementation = {} if subject.implementation is None else {"implementation": subject.implementation}
            store.add_variant(subject.name, facts[subject.name] | implementation)
        # By variant the shortest row that ran out: whatever is longer is not tried.
        ended = {} if retry else _ended(store.rows.values())
        for length in sorted(set(lengths)):
            for subject in subjects:
                key = {"variant": subject.name, "trial": 0, "length": length, "depth": None, "kind": "cost"}
                known = store.rows.get(row_key(key))
                if known is not None and not _again(known, retry):
                    continue
                row = key | _row(subject, length, settings, bounds, ended.get(subject.name))
                ended = _ended([*ended.values(), row])
                if row["outcome"] != "error":
                    row |= _modelled(subject, length, settings, sizes, config)
                store.add_row(row)
                if on_row is not None:
                    on_row(row)
    if store.out is not None and store.rows:
        from .report import attempt

        attempt(store.out)
    order = {subject.name: i for i, subject in enumerate(subjects)}
    rows = sorted(
        (row for row in store.rows.values() if row["variant"] in order),
        key=lambda row: (row["length"], order[row["variant"]]),
    )
    return {key: value for key, value in store.run.items() if key != "schema"} | {"rows": rows}


@dataclass(frozen=True)
class _Subject:
    """A variant, transformers' attention function that it is given, and what the cost model calls it."""

    variant: Variant
    implementation: str | None
    method: Method

    @property
    def name(self) -> str:
        return self.variant.name


def _subjects(
    variants: Iterable[str | Variant] | Mapping[str, Mapping[str, str]],
    saved: Variant | None,
    *,
    stock: bool,
    standard: bool,
) -> list[_Subject]:
    """What runs, in order; `saved` is what the model's folder was patched with."""
    # Saved Mamba layers are in their places as soon as the model is loaded: nothing is left to be patched.
    loaded = Variant(AS_LOADED) if saved is not None and saved.mamba is not None else saved
    chosen = as_variants(variants, stock=stock or standard, loaded=loaded)
    subjects = []
    if standard:
        subjects.append(_Subject(replace(Variant(STOCK), name=EAGER), "eager", STANDARD))
    for variant in chosen:
        if variant.name == EAGER:
            raise ValueError(
                f"the variant name {EAGER!r} is reserved for the model under standard attention: choose another"
            )
        if variant.name != STOCK or stock:
            method = method_of(saved if saved is not None and variant.name == AS_LOADED else variant)
            subjects.append(_Subject(variant, None, method))
    return subjects


def method_of(variant: Variant) -> Method:
    """What the cost model is told of a variant; RoPE costs nothing."""
    if variant.attention is None and variant.mamba is None:
        return FLASH
    pattern = None if variant.attention is None else parse(variant.attention)
    own = variant.own_windows or "intersect"
    patched = pattern is not None
    return Method(variant.name, attention=pattern, patched=patched, mamba=variant.mamba, own_windows=own)


@dataclass(frozen=True)
class _Bounds:
    """What a measurement may take: bytes, None for what is free, and seconds."""

    memory: int | None
    timeout: float


def _again(row: Mapping[str, Any], retry: bool) -> bool:
    """Whether a row that is there is measured again."""
    return row["outcome"] == "error" or (retry and row["outcome"] in UNMEASURED)


def _ended(rows: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """By variant the shortest row that ran out of memory or time."""
    found: dict[str, Mapping[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["length"]):
        if row["outcome"] in ("oom", "timeout"):
            found.setdefault(row["variant"], row)
    return found


def _row(
    subject: _Subject,
    length: int,
    settings: Mapping[str, Any],
    bounds: _Bounds,
    ended: Mapping[str, Any] | None,
) -> dict[str, Any]:
    if ended is not None and ended["length"] < length:
        return {"outcome": "skipped", "reason": f"{ended['outcome']} at {ended['length']} tokens", "seconds": 0.0}
    memory = bounds.memory or (free_memory("cpu") if _device(settings) == "cpu" else None)
    task = Task(
        definition=subject.variant.definition(),
        implementation=subject.implementation,
        length=length,
        **{key: settings[key] for key in ("model", "dtype", "device", "steps", "repeats", "chunk", "seed")},
        memory=memory,
    )
    started = time.perf_counter()
    found = _child(task, bounds.timeout)
    spent = {"memory_limit": memory, "seconds": round(time.perf_counter() - started, 1)}
    if found["outcome"] != "ok":
        return found | spent
    prefill, decode = found["prefill_seconds"], found["decode_seconds"]
    same = (
        "baseline_bytes", "working_bytes", "peak_bytes", "reserved_bytes", "weight_bytes", "cache_bytes",
        "cache_storage_bytes", "first_seconds", "threads", "device", "implementation", "backends",
    )  # fmt: skip
    return {
        "outcome": "ok",
        "reason": None,
        "ttft_seconds": spread(prefill),
        "prefill_tokens_per_second": spread([length / one for one in prefill]),
        "decode_tokens_per_second": spread([task.steps / one for one in decode]),
        **{key: found[key] for key in same},
        "described_cache_bytes": found["described_bytes"],
        **spent,
    }


def _device(settings: Mapping[str, Any]) -> str:
    """`cpu` or `cuda`: where the measurements run."""
    return str(settings["device"] or ("cuda" if hardware()["cuda"] else "cpu")).partition(":")[0]


def _modelled(
    subject: _Subject, length: int, settings: Mapping[str, Any], sizes: Architecture, config: Any
) -> dict[str, int]:
    """What the cost model says of a row, whether or not it can be measured."""
    import torch

    device = _device(settings)
    stored = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    dtype = settings["dtype"] or ("float32" if device == "cpu" else "auto")
    dtype = stored if dtype == "auto" else dtype
    args = {"itemsize": getattr(torch, dtype).itemsize, "chunk": settings["chunk"], "device": device, "count": False}
    prefill, ended = (cost(sizes, subject.method, n, **args) for n in (length, length + settings["steps"]))
    return {
        "modelled_working_bytes": prefill.working_bytes,
        "modelled_peak_bytes": prefill.peak_bytes,
        "modelled_cache_bytes": ended.cache_bytes,
    }


def _child(task: Task, timeout: float) -> dict[str, Any]:
    """Measure in another process; what becomes of it is the outcome."""
    with tempfile.TemporaryDirectory(prefix="hf_longctx-") as folder:
        ask, answer = Path(folder, "task.json"), Path(folder, "result.json")
        ask.write_text(json.dumps(asdict(task)), encoding="utf-8")
        words = [sys.executable, "-m", "hf_longctx.measure.cost_child", str(ask), str(answer)]
        # The child finds what this process finds, from wherever it was started.
        paths = os.pathsep.join(path for path in sys.path if path)
        try:
            done = subprocess.run(
                words, capture_output=True, text=True, timeout=timeout, env=os.environ | {"PYTHONPATH": paths}
            )
        except subprocess.TimeoutExpired:
            return {"outcome": "timeout", "reason": f"not done after {timeout:g} seconds"}
        if answer.is_file() and done.returncode == 0:
            return json.loads(answer.read_text(encoding="utf-8"))
    if done.returncode == -9:
        return {"outcome": "oom", "reason": "killed by the system, which ran out of memory"}
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    logger.warning("measuring failed: %s", done.stderr.strip() or f"exit code {done.returncode}")
    return {"outcome": "error", "reason": f"exit code {done.returncode}: {last[:300]}"}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles and raw values of repeats.

    >>> spread([3.0, 1.0, 2.0])
    {'median': 2.0, 'low': 1.5, 'high': 2.5, 'values': [3.0, 1.0, 2.0]}
    """
    if len(values) == 1:
        low = high = values[0]
    else:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": statistics.median(values), "low": low, "high": high, "values": list(values)}
