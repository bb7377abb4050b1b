"""Whether a text form says all: the plan in a config is text, read again by each forward and out of config.json.

A class of the user's own may hold what its text form leaves out, and another model would then run than was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hf_longctx.patterns import Layers, Pattern, parse
from hf_longctx.patterns.combine import leaves
from hf_longctx.patterns.rule import check_rule
from hf_longctx.rope import Scaling
from hf_longctx.rope import parse as parse_rope


def check_pattern(given: Pattern | Layers) -> None:
    """Raise unless a pattern, and each pattern in it, is read back from its text form as it is.

    Raises:
        ValueError: a class without a name, or one that holds more than its text form says.
        TypeError: a rule that fails, or does not say what is seen.

    >>> from hf_longctx.patterns import Heads, Union
    >>> check_pattern(Heads([Union.of(parse("block:8"), parse("global:2")).within(4), parse("full")]))
    """
    for pattern in _single(given):
        name = type(pattern).__name__
        snake = type(pattern).name or re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
        advice = (
            f"make {name} a frozen dataclass with fields of int, float, bool or str (or one of these or None), the "
            f"strings without spaces and +&|;,=(), under a name: `@dataclass(frozen=True) class {name}"
            f"(Pattern, name={snake!r})`"
        )
        if pattern.name is None:
            raise ValueError(
                f"attention pattern {name} has no name, so the text in the model's config cannot say it: {advice}"
            )
        wrong = _lost(pattern, parse)
        if wrong:
            raise ValueError(
                f"attention pattern {name} would not come back from the model's config, which stores it as "
                f"{str(pattern)!r}: {wrong}; {advice}"
            )
        check_rule(pattern)
    wrong = _lost(given, parse)
    if wrong:
        raise ValueError(
            f"attention {str(given)!r} would not come back from the model's config: {wrong}; join patterns by "
            "`a | b`, `a.within(window)`, Heads([a, b]) and Layers({...})"
        )


def check_rope(scaling: Scaling) -> None:
    """Raise ValueError unless a scaling is read back from its text form as it is."""
    wrong = _lost(scaling, parse_rope)
    if wrong:
        name = type(scaling).__name__
        raise ValueError(
            f"rope {name} would not come back from the model's config, which stores it as {str(scaling)!r}: {wrong}; "
            f"make {name} a frozen dataclass with a `name`, and fields of numbers"
        )


def same(a: Any, b: Any) -> bool:
    """Whether two patterns, plans or scalings are of one class and hold the same, other than `==` for plain classes.

    Patterns of a plain class are equal to themselves only; here all that two of them hold is compared.

    >>> class Near(Pattern, name=None):
    ...     def allows(self, q, k, *, layer=0, head=0):
    ...         return q - k < 4
    >>> Near() == Near(), same(Near(), Near())
    (False, True)
    """
    if isinstance(a, Pattern | Layers | Scaling):
        return type(a) is type(b) and _same_state(a, b)
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return type(a) is type(b) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    return bool(a == b)


def _same_state(a: Any, b: Any) -> bool:
    left, right = _state(a), _state(b)
    names = left.keys() & right.keys()
    if "__dataclass_fields__" in vars(type(a)):
        # What a dataclass works out from its fields may be there in one only yet, or have no equality of its own.
        own = {f.name for f in fields(a)}
        names = {n for n in names if n in own or "__eq__" in _defined(left[n])}
    elif left.keys() != right.keys():
        return False
    return all(same(left[name], right[name]) for name in names)


def _defined(x: object) -> set[str]:
    """What the classes of an object define, below `object` itself."""
    return {name for cls in type(x).__mro__[:-1] for name in vars(cls)}


def _state(x: Any) -> dict[str, Any]:
    """All that an instance holds: fields, attributes and slots, cached properties left out."""
    names = {*getattr(x, "__dict__", ()), *(f.name for f in fields(x))}
    for cls in type(x).__mro__:
        slots = vars(cls).get("__slots__", ())
        names |= {slots} if isinstance(slots, str) else set(slots)
    names -= {n for n in names if isinstance(getattr(type(x), n, None), cached_property)} | {"__dict__", "__weakref__"}
    return {name: getattr(x, name) for name in names if hasattr(x, name)}


def _single(given: Pattern | Layers) -> Iterator[Pattern]:
    """The patterns that a pattern or a plan is made of, down to those made of none."""
    for pattern in [one for _, one in given.plan] if type(given) is Layers else [given]:
        yield from leaves(pattern)  # type: ignore[arg-type]


def _lost(given: Any, read: Callable[[str], Any]) -> str | None:
    """What goes wrong when the text form of `given` is read, or None."""
    try:
        back = read(str(given))
        if type(back) is not type(given) and type(back).__qualname__ == type(given).__qualname__:
            return f"{type(given).__name__} was defined again since this one was made, so make it again"
        if same(given, back):
            return None
        return "that leaves out part of it" if type(back) is type(given) else f"that reads as {back!r}"
    except Exception as error:  # a user's own class may raise anything
        return f"reading that fails ({error})"
