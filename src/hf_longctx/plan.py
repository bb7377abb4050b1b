"""Attention specs meet a model's layers: one `LayerPlan` a layer, pure data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hf_longctx.patterns import Full, Heads, Layers, Pattern

OWN_WINDOWS = ("intersect", "replace")
#: Layer types whose attention is ordinary causal attention, perhaps through a window.
ATTENTION_KINDS = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class ModelShape:
    """What a plan needs to know of a model.

    Attributes:
        kinds: the layer type of each layer.
        windows: the window that each layer has of its own, in keys, or None.
        kv_heads: key-value heads of a layer.
    """

    kinds: tuple[str, ...]
    windows: tuple[int | None, ...]
    kv_heads: int


@dataclass(frozen=True)
class LayerPlan:
    """What one layer attends to.

    Attributes:
        index: the layer.
        kind: its layer type.
        given: the pattern that the plan gives it, None where it stays stock.
        own: the window that the layer has of its own, None without one.
        replaced: whether `given` stands in the place of `own` rather than behind it.
        pattern: what is computed.
    """

    index: int
    kind: str
    given: Pattern | None
    own: int | None
    replaced: bool
    pattern: Pattern


def check_own_windows(own_windows: str) -> None:
    """Raise ValueError unless `own_windows` is a mode that `resolve` knows."""
    if own_windows not in OWN_WINDOWS:
        raise ValueError(f"own_windows is {own_windows!r}: it must be one of {', '.join(OWN_WINDOWS)}")


def resolve(attention: Pattern | Layers | None, shape: ModelShape, own_windows: str = "intersect") -> list[LayerPlan]:
    """The plan of every layer.

    Args:
        attention: one pattern for all layers, a plan by layer, or None (every layer stock).
        shape: the model.
        own_windows: `intersect` (a layer's own window stays) or `replace` (the pattern stands in its place).

    Raises:
        ValueError: a selector fits no layer or two claim one, Heads that do not divide the heads, an unknown mode.

    >>> from hf_longctx.patterns import SlidingWindow
    >>> shape = ModelShape(("full_attention",) * 2, (None, 8), kv_heads=2)
    >>> [str(p.pattern) for p in resolve(SlidingWindow(16), shape)]
    ['window:16', 'window:8']
    """
    check_own_windows(own_windows)
    count = len(shape.kinds)
    if attention is None:
        given: Sequence[Pattern | None] = [None] * count
    elif isinstance(attention, Layers):
        given = attention.resolve(count, shape.kinds)
    else:
        given = [attention] * count
    plans = []
    for index, (kind, own, pattern) in enumerate(zip(shape.kinds, shape.windows, given)):
        if pattern is not None and kind not in ATTENTION_KINDS:
            raise ValueError(
                f"layer {index} is of type {kind!r}, which no attention pattern can replace: give patterns to layers "
                f"of types {', '.join(ATTENTION_KINDS)} only, by selectors"
            )
        replaced = own is not None and pattern is not None and own_windows == "replace"
        computed = pattern or Full()
        if isinstance(computed, Heads):
            computed = Heads(computed.spread(shape.kv_heads))
        if own is not None and not replaced:
            computed = computed.within(own)
        plans.append(LayerPlan(index, kind, pattern, own, replaced, computed))
    return plans
