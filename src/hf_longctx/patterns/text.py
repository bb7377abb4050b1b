"""The text form of patterns: one grammar for the command line, YAML and config.json.

window:1024+global:4            a union
block:256&window:300+global:4   a member through a sliding window (`&` goes before `+`)
heads(window:64|full)           by key-value head
0,-1=full;*=window:1024         by layer (see `Layers`)
longformer                      a preset
"""

from __future__ import annotations

import difflib
import inspect
import operator
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field
from functools import reduce
from importlib.metadata import entry_points
from typing import Any

from hf_longctx.patterns.base import REGISTRY, Pattern, given_fields, required
from hf_longctx.patterns.combine import Heads, Union
from hf_longctx.patterns.layers import SELECTOR, Layers
from hf_longctx.patterns.presets import PRESETS
from hf_longctx.patterns.sliding_window import SlidingWindow

ENTRY_POINTS = "hf_longctx.patterns"


def names() -> list[str]:
    """All registered pattern names, sorted."""
    return sorted(REGISTRY)


def parse(text: str | Pattern | Layers) -> Pattern | Layers:
    """Read a pattern, or a plan by layer, from its text form; objects pass through.

    Raises:
        ValueError: unknown name (with the nearest one), wrong number or kind of values, unbalanced text.
        TypeError: neither text nor a pattern.

    >>> parse("window:1024+global:4")
    Union(members=(SlidingWindow(window=1024), Global(tokens=4)))
    >>> str(parse("0,-1=full;*=window:1k"))
    '0,-1=full;*=window:1024'
    >>> str(parse("block:8&window:4"))
    'block:8,0&window:4'
    """
    if isinstance(text, Pattern | Layers):
        return text
    if not isinstance(text, str):
        raise TypeError(
            f"attention is {text!r}: give a pattern such as SlidingWindow(1024), or text such as 'window:1024'"
        )
    text = "".join(text.split())
    parts = _split(text, ";")
    if len(parts) > 1 or re.match(rf"{SELECTOR}=", text):
        plan: dict[str | int, Pattern | str] = {}
        for part in parts:
            match = re.match(rf"({SELECTOR})=(.+)$", part)
            if match is None:
                raise ValueError(
                    f"layer plan part {part!r} in {text!r} must read SELECTOR=PATTERN, such as '::4=full'"
                )
            selector, body = match.group(1), match.group(2)
            if selector in plan:
                raise ValueError(f"layer selector {selector!r} stands twice in {text!r}: name each selector once")
            plan[selector] = _pattern(body)
        return Layers(plan)
    return _pattern(text)


def _pattern(text: str) -> Pattern:
    members = [_through_windows(part, text) for part in _split(text, "+")]
    return reduce(operator.or_, members) if any(isinstance(m, Heads) for m in members) else Union.of(*members)


def _through_windows(text: str, whole_text: str) -> Pattern:
    """A member of a union: a pattern, and behind `&` the windows it is seen through."""
    first, *rest = _split(text, "&")
    pattern = _single(first, whole_text)
    for part in rest:
        window = _single(part, whole_text)
        if not isinstance(window, SlidingWindow):
            raise ValueError(f"{part!r} in {whole_text!r} stands behind '&', where only '&window:SIZE' may")
        pattern = pattern.within(window.window)
    return pattern


def _single(text: str, whole_text: str) -> Pattern:
    if text.startswith("heads(") and text.endswith(")"):
        return Heads(_pattern(part) for part in _split(text[len("heads(") : -1], "|"))
    if text in PRESETS:
        return _pattern(PRESETS[text][0])
    name, _, body = text.partition(":")
    cls = _lookup(name, whole_text)
    return _build(cls, body)


def load_others(name: str | None = None) -> None:
    """Import the patterns that other packages offer as entry points of the group `hf_longctx.patterns`.

    They are loaded when a name is not ours, or all are listed, so that importing stays cheap.

    Args:
        name: the only one to import.
    """
    for entry in entry_points(group=ENTRY_POINTS):
        if name in (None, entry.name):
            entry.load()


def _lookup(name: str, text: str) -> type[Pattern]:
    if name not in REGISTRY:
        load_others(name)
    if name not in REGISTRY:
        known = [*names(), *PRESETS, "heads(...)"]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown attention pattern {name!r} in {text!r}: {hint}known are {', '.join(known)}")
    return REGISTRY[name]


def _build(cls: type[Pattern], body: str) -> Pattern:
    order = [f.name for f in given_fields(cls)]
    usage = f"{cls.name}:{','.join(_usage(f) for f in given_fields(cls))}" if order else cls.name
    kinds = _kinds(cls)
    values: dict[str, object] = {}
    for i, part in enumerate(body.split(",") if body else []):
        key, equals, value = part.partition("=")
        if not equals:
            key, value = (order[i], part) if i < len(order) else ("", part)
        if key not in order or key in values:
            raise ValueError(
                f"{cls.name} takes {len(order)} value(s), {usage}; {part!r} in {cls.name}:{body} does not fit"
            )
        values[key] = _value(value, kinds[key], f"{cls.name}.{key}")
    missing = [name for name in required(cls) if name not in values]
    if missing:
        example = f", such as {cls.typical}" if cls.typical else ""
        raise ValueError(f"{cls.name} needs {', '.join(missing)}: write {usage}{example}")
    try:
        inspect.signature(cls).bind(**values)
    except TypeError as error:
        raise ValueError(
            f"{cls.name} cannot be made from text, because {cls.__name__}(...) has arguments that are no fields "
            f"({error}): make {cls.__name__} a frozen dataclass"
        ) from error
    return cls(**values)


def _usage(field: Field[Any]) -> str:
    return field.name if field.default is MISSING else f"{field.name}={field.default}"


def _kinds(cls: type[Pattern]) -> dict[str, Any]:
    """The type of each field."""
    try:
        return typing.get_type_hints(cls)
    except (NameError, TypeError) as error:
        raise ValueError(
            f"{cls.name} cannot be made from text, because the types of {cls.__name__}'s fields cannot be read "
            f"({error}): use int, float, bool, str, or one of these or None"
        ) from error


def _value(text: str, kind: Any, label: str) -> object:
    if kind is int:
        match = re.fullmatch(r"(-?\d{1,30})([km]?)", text.lower())
        if match is None:
            raise ValueError(f"{label} is {text!r}: it must be a whole number, such as 1024 or 1k")
        return int(match.group(1)) * {"": 1, "k": 1024, "m": 1024 * 1024}[match.group(2)]
    if kind is bool:
        if text not in ("True", "False"):
            raise ValueError(f"{label} is {text!r}: it must be True or False")
        return text == "True"
    if kind is float:
        try:
            return float(text)
        except ValueError as error:
            raise ValueError(f"{label} is {text!r}: it must be a number") from error
    if isinstance(kind, type) and issubclass(kind, str):
        return kind(text)
    allowed = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        if text not in map(str, allowed):
            raise ValueError(f"{label} is {text!r}: it must be one of {', '.join(map(str, allowed))}")
        return next(value for value in allowed if str(value) == text)
    if typing.get_origin(kind) in (types.UnionType, typing.Union) and len(allowed) == 2 and type(None) in allowed:
        return None if text == "None" else _value(text, next(k for k in allowed if k is not type(None)), label)
    shown = getattr(kind, "__name__", kind) if not allowed else kind
    raise ValueError(
        f"{label} is of type {shown}, which has no text form: make it int, float, bool, str, or one of these or None"
    )


def _split(text: str, separator: str) -> list[str]:
    """Split at separators outside parentheses; empty parts are an error."""
    parts, depth = [""], 0
    for char in text:
        depth += (char == "(") - (char == ")")
        if depth < 0:
            break
        if char == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    if depth != 0:
        raise ValueError(f"unbalanced parentheses in {text!r}")
    if any(not part for part in parts):
        raise ValueError(f"empty part in {text!r}: write patterns such as 'window:1024+global:4'")
    return parts


def gallery(sizes: Mapping[str, int] | None = None) -> Iterable[tuple[str, Pattern]]:
    """An example of every registered pattern, for pictures, for cost tables, and for tests that loop over all.

    Args:
        sizes: values of the fields by name; a required field that it lacks gets 128, an optional one its default.
            None makes small ones: a pattern may give its own with a class attribute `example` (a text form);
            otherwise each whole number gets a small value.

    >>> dict(gallery({"window": 1024, "dilation": 4}))["dilated"]
    Dilated(window=1024, dilation=4)
    """
    for name in names():
        cls = REGISTRY[name]
        text = getattr(cls, "example", None) if sizes is None else None
        if text is None:
            if sizes is None:
                small = {"window": 6, "tokens": 2, "size": 4}
                first = [f.name for f in given_fields(cls)[:2] if _kinds(cls)[f.name] is int]
                chosen = {f: small.get(f, 2) for f in dict.fromkeys((*first, *required(cls)))}
            else:
                order = [f.name for f in given_fields(cls)]
                chosen = {f: sizes.get(f, 128) for f in order if f in required(cls) or f in sizes}
            text = f"{name}:{','.join(f'{k}={v}' for k, v in chosen.items())}" if chosen else name
        yield name, _pattern(text)


def presets() -> Mapping[str, str]:
    """Named patterns from the literature and their text forms."""
    return {name: text for name, (text, _) in PRESETS.items()}


__all__ = ["Union", "gallery", "names", "parse", "presets"]
