"""The memory wall of a model: what every way of mixing tokens costs by length, and where it outgrows a machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from hf_longctx.hf.architecture import Architecture
from hf_longctx.patterns import Layers, Pattern, gallery, parse, presets

from .cost_model import FLASH, STANDARD, Cost, Method, cost, longest
from .machines import Machine

#: Sizes of patterns that are not given, by the name of the field.
TYPICAL = {
    "window": 1024, "tokens": 4, "size": 256, "previous": 1, "dilation": 4, "local": 128, "stride": 128, "summary": 32,
    "blocks": 3,
}  # fmt: skip
#: 1K to 2M, doubling.
LENGTHS = tuple(1024 << i for i in range(12))
#: Quantities whose crossing of the machine's memory is looked up.
CROSSINGS = ("matrix_bytes", "layer_bytes", "all_scores_bytes", "cache_bytes", "all_logits_bytes", "peak_bytes")


def methods(attention: Iterable[str] | None = None, *, mamba: str = "*") -> list[Method]:
    """What a wall compares: standard and flash attention, patterns, and Mamba-2 layers.

    Args:
        attention: text forms of patterns or plans by layer; None takes every registered pattern and every preset.
        mamba: which layers become Mamba-2 layers in the last one, in text form.

    Raises:
        ValueError: a text that is no pattern.

    >>> [m.name for m in methods(["window:1024"], mamba="1::2")]
    ['standard', 'flash', 'window:1024', 'mamba2 in 1::2']
    """
    if attention is None:
        chosen: dict[str, Pattern | Layers] = {str(p): p for name, p in gallery(TYPICAL) if name != "full"}
        chosen |= {name: parse(text) for name, text in presets().items()}
    else:
        chosen = {text: parse(text) for text in attention}
    mixed = Method("mamba2" if mamba == "*" else f"mamba2 in {mamba}", mamba=mamba)
    patterns = [Method(name, attention=p, patched=True) for name, p in chosen.items()]
    return [STANDARD, FLASH, *patterns, mixed]


def wall(
    a: Architecture,
    compared: Sequence[Method],
    *,
    machine: Machine,
    lengths: Sequence[int] = LENGTHS,
    itemsize: int = 2,
    chunk: int = 2048,
    count: bool = True,
) -> dict[str, Any]:
    """Costs of each method at each length, and the longest length that fits a machine.

    Args:
        a: the model's sizes.
        compared: the methods.
        machine: what has to be fitted.
        lengths: tokens.
        itemsize: bytes of a number.
        chunk: rows of one forward in the figures that read the prompt in chunks; the others read it at once.
        count: whether operations are worked out too, for which a pattern's pairs are counted; None without.

    Returns:
        Plain data: `machine`, `itemsize`, `chunk`, `architecture`, and `methods`, each with `name`, `pattern` and
        `mamba` (text or None), `crossover` (tokens from which on its states take fewer bytes than the keys and values
        in their place, or None), `rows` (a `Cost` as a dict by length, with `chunked_peak_bytes`), and `fits`: for
        each quantity the most tokens at which it is within the machine's memory, None where it always is, with
        `chunked_peak_bytes` too.

    Raises:
        ValueError: no length or one below 1, or a plan that does not fit the model.
    """
    if not lengths:
        raise ValueError("lengths is empty: give at least one, such as 1k,32k,1m")
    for method in compared:
        cost(a, method, 1, count=False)  # a plan that does not fit is refused before the long work
    shown = []
    for method in compared:
        rows = []
        for n in lengths:
            row = cost(a, method, n, itemsize=itemsize, count=count).to_dict()
            chunked = cost(a, method, n, itemsize=itemsize, chunk=chunk, count=False)
            rows.append(row | {"chunked_peak_bytes": chunked.peak_bytes})
        shown.append(
            {
                "name": method.name,
                "pattern": None if method.attention is None else str(method.attention),
                "mamba": method.mamba,
                "crossover": crossover(a, method, itemsize=itemsize),
                "rows": rows,
                "fits": _fits(a, method, machine.memory, itemsize, chunk),
            }
        )
    return {
        "machine": asdict(machine),
        "itemsize": itemsize,
        "chunk": chunk,
        "architecture": {key: value for key, value in asdict(a).items() if key not in ("states", "shape")}
        | {"layers": a.layers, "kv_heads": a.shape.kv_heads, "windows": list(a.shape.windows)},
        "methods": shown,
    }


def crossover(a: Architecture, method: Method, *, itemsize: int = 2) -> int | None:
    """The first length at which a method's states take fewer bytes than the keys and values in their place.

    Args:
        a: the model's sizes.
        method: one with Mamba-2 layers.
        itemsize: bytes of a number.

    Returns:
        Tokens; None where keys and values never take more, because windows bound them, or without Mamba-2 layers.

    >>> from transformers import LlamaConfig
    >>> from hf_longctx.hf.architecture import architecture
    >>> crossover(architecture(LlamaConfig(num_key_value_heads=8)), methods([], mamba="::2")[-1])
    138
    """
    without = replace(method, mamba=None)

    def saved(n: int) -> int:
        with_states, keys = (cost(a, m, n, itemsize=itemsize, count=False).cache_bytes for m in (method, without))
        return keys - with_states

    fewer = None if method.mamba is None else longest(saved, 0)
    return None if fewer is None else fewer + 1


def _fits(a: Architecture, method: Method, memory: int, itemsize: int, chunk: int) -> dict[str, int | None]:
    def at(n: int, **more: Any) -> Cost:
        return cost(a, method, n, itemsize=itemsize, count=False, **more)

    found = {name: longest(lambda n, name=name: getattr(at(n), name), memory) for name in CROSSINGS}  # type: ignore[misc]
    return found | {"chunked_peak_bytes": longest(lambda n: at(n, chunk=chunk).peak_bytes, memory)}
