"""Which layers get which pattern: a plan written with selectors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hf_longctx.patterns.base import Pattern

_INDEX = r"-?\d{1,9}"
_ITEM = rf"(?:\*|(?:{_INDEX})?:(?:{_INDEX})?(?::{_INDEX})?|{_INDEX}|[A-Za-z_]\w*)"
#: A layer selector: indices, Python slices, layer types of the model, joined by commas; or `*` for the rest.
SELECTOR = rf"{_ITEM}(?:,{_ITEM})*"
#: Layer types whose attention is ordinary causal attention, perhaps through a window.
ATTENTION_KINDS = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class Layers:
    """Patterns by layer. Layers that no selector covers stay as the model has them.

    Args:
        plan: selector -> pattern (an object or its text). A selector is an index (`0`, `-1`), a Python slice (`::4`,
            `2:20`), one of the model's own layer types (`full_attention`), several of these joined by commas, or `*`
            for all attention layers that no other selector names.

    >>> from hf_longctx.patterns import Full, SlidingWindow
    >>> plan = Layers({"0,-1": Full(), "*": SlidingWindow(64)})
    >>> [str(p) for p in plan.resolve(4)]
    ['full', 'window:64', 'window:64', 'full']
    """

    plan: tuple[tuple[str, Pattern], ...]

    def __init__(self, plan: Mapping[str | int, Pattern | str]) -> None:
        from hf_longctx.patterns.text import parse

        if not isinstance(plan, Mapping):
            raise TypeError(
                f"Layers is given {plan!r}: it must be a dict of selector to pattern, such as "
                "Layers({'0': Full(), '*': SlidingWindow(1024)}); text goes to patterns.parse"
            )
        if not plan:
            raise ValueError("Layers is empty: give at least one selector, such as Layers({'*': SlidingWindow(1024)})")
        entries = []
        for selector, given in plan.items():
            text = str(selector).replace(" ", "")
            if not re.fullmatch(SELECTOR, text):
                raise ValueError(
                    f"layer selector {selector!r} must be an index, a slice, a layer type or '*', such as '0,-1'"
                )
            pattern = parse(given)
            if not isinstance(pattern, Pattern):
                raise TypeError(f"layer selector {selector!r} has {given!r}: it must be one pattern, not another plan")
            entries.append((text, pattern))
        object.__setattr__(self, "plan", tuple(entries))

    def resolve(self, layers: int, kinds: Sequence[str | None] = ()) -> list[Pattern | None]:
        """The pattern of each of `layers` layers, None where the layer stays stock.

        Args:
            layers: number of layers.
            kinds: the model's own layer type of each, for selectors by type.

        Raises:
            ValueError: a selector matches no layer, or two claim one.
        """
        claimed: dict[int, tuple[str, Pattern]] = {}
        rest: Pattern | None = None
        for selector, pattern in self.plan:
            if selector == "*":
                rest = pattern
                continue
            for index in select(selector, layers, kinds):
                if index in claimed:
                    raise ValueError(
                        f"layer {index} is claimed by both {claimed[index][0]!r} and {selector!r}: "
                        "make the selectors disjoint"
                    )
                claimed[index] = (selector, pattern)
        left = [i for i in range(layers) if i not in claimed and (not kinds or kinds[i] in ATTENTION_KINDS)]
        if rest is not None and not left:
            raise ValueError(
                f"layer selector '*' in '{self}' matches no layer: the others already name all attention layers of "
                f"{layers}"
            )
        return [claimed[i][1] if i in claimed else rest if i in left else None for i in range(layers)]

    def __str__(self) -> str:
        return ";".join(f"{selector}={pattern}" for selector, pattern in self.plan)


def select(selector: str, layers: int, kinds: Sequence[str | None] = ()) -> list[int]:
    """The layer indices that a selector names, in order.

    >>> select("1::4", 10), select("0,-1", 10)
    ([1, 5, 9], [0, 9])
    """
    chosen: set[int] = set()
    for item in selector.split(","):
        if item == "*":
            if selector != "*":
                raise ValueError(
                    f"layer selector {selector!r}: '*' stands alone, for all layers that nothing else names"
                )
            return list(range(layers))
        if ":" in item:
            parts = [int(p) if p else None for p in item.split(":")]
            if len(parts) == 3 and parts[2] == 0:
                raise ValueError(f"layer selector {item!r} has a step of 0: give a step of at least 1, such as '::4'")
            found = set(range(layers)[slice(*parts)])
        elif re.fullmatch(r"-?\d+", item):
            found = {int(item) % layers} if -layers <= int(item) < layers else set()
        else:
            found = {i for i, kind in enumerate(kinds) if kind == item}
        if not found:
            types = sorted({k for k in kinds if k is not None})
            raise ValueError(
                f"layer selector {item!r} matches no layer: the model has layers 0 to {layers - 1}"
                + (f" of types {', '.join(types)}" if types else "")
            )
        chosen |= found
    return sorted(chosen)
