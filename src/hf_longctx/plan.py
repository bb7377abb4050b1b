"""Attention specs meet a model's layers: one `LayerPlan` a layer, pure data."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from hf_longctx.patterns import Full, Heads, Layers, Pattern
from hf_longctx.patterns.layers import ATTENTION_KINDS

OWN_WINDOWS = ("intersect", "replace")
#: The type, in transformers' words, of a layer that has a recurrent state in the place of keys and values.
STATE_KIND = "linear_attention"


@dataclass(frozen=True)
class ModelShape:
    """What a plan needs to know of a model.

    Attributes:
        kinds: the layer type of each layer, `STATE_KIND` where a Mamba layer stands.
        windows: the window that each layer has of its own, in keys, or None.
        kv_heads: key-value heads of a layer.
        own_heads: those of each layer, where they differ.
    """

    kinds: tuple[str, ...]
    windows: tuple[int | None, ...]
    kv_heads: int
    own_heads: tuple[int, ...] = ()

    def heads(self, index: int) -> int:
        """Key-value heads of one layer."""
        return self.own_heads[index] if self.own_heads else self.kv_heads


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


def kinds_of(kinds: Sequence[str], windows: Sequence[int | None], mamba: Collection[int] = ()) -> tuple[str, ...]:
    """The layer type of each layer.

    Args:
        kinds: those that the config names; empty where it names none.
        windows: the window that each layer has of its own.
        mamba: indices of layers that are Mamba layers instead.

    >>> kinds_of((), (None, 8, None), mamba=[2])
    ('full_attention', 'sliding_attention', 'linear_attention')
    """
    named = tuple(kinds) or tuple("full_attention" if w is None else "sliding_attention" for w in windows)
    return tuple(STATE_KIND if i in mamba else kind for i, kind in enumerate(named))


def check_own_windows(own_windows: str) -> None:
    """Raise ValueError unless `own_windows` is a mode that `resolve` knows."""
    if own_windows not in OWN_WINDOWS:
        raise ValueError(f"own_windows is {own_windows!r}: it must be one of {', '.join(OWN_WINDOWS)}")


def resolve(attention: Pattern | Layers | None, shape: ModelShape, own_windows: str = "intersect") -> list[LayerPlan]:
    """The plan of every layer.

    Args:
        attention: one pattern for all attention layers, a plan by layer, or None (every layer stock).
        shape: the model.
        own_windows: `intersect` (a layer's own window stays) or `replace` (the pattern stands in its place).

    Raises:
        ValueError: a selector fits no layer or two claim one, Heads that do not divide the heads, an unknown mode.

    >>> from hf_longctx.patterns import SlidingWindow
    >>> shape = ModelShape(("full_attention",) * 2, (None, 8), kv_heads=2)
    >>> [str(p.pattern) for p in resolve(SlidingWindow(16), shape)]
    ['window:16', 'window:8']
    """
    given = _given(attention, shape, own_windows)
    return [_one(index, given[index], shape, own_windows) for index in range(len(given))]


def resolve_one(
    index: int, attention: Pattern | Layers | None, shape: ModelShape, own_windows: str = "intersect"
) -> LayerPlan:
    """The plan of one layer: of the windows and heads in `shape` only its own count. As `resolve` otherwise."""
    return _one(index, _given(attention, shape, own_windows)[index], shape, own_windows)


def _given(attention: Pattern | Layers | None, shape: ModelShape, own_windows: str) -> Sequence[Pattern | None]:
    """The pattern that each layer is given."""
    check_own_windows(own_windows)
    if attention is None:
        return [None] * len(shape.kinds)
    if isinstance(attention, Layers):
        return attention.resolve(len(shape.kinds), shape.kinds)
    given = [attention if kind in ATTENTION_KINDS else None for kind in shape.kinds]
    if not any(given):
        raise ValueError(
            f"attention={str(attention)!r} matches no layer: none of {len(given)} is of types "
            f"{', '.join(ATTENTION_KINDS)}"
        )
    return given


def _one(index: int, pattern: Pattern | None, shape: ModelShape, own_windows: str) -> LayerPlan:
    kind, own = shape.kinds[index], shape.windows[index]
    if pattern is not None and kind not in ATTENTION_KINDS:
        raise ValueError(
            f"layer {index} is of type {kind!r}, which no attention pattern can replace: name only layers of "
            f"types {', '.join(ATTENTION_KINDS)}, or give the rest a pattern with '*', which passes over others"
        )
    replaced = own is not None and pattern is not None and own_windows == "replace"
    computed = pattern or Full()
    if isinstance(computed, Heads):
        computed = Heads(computed.spread(shape.heads(index)))
    if own is not None and not replaced:
        computed = computed.within(own)
    return LayerPlan(index, kind, pattern, own, replaced, computed)
