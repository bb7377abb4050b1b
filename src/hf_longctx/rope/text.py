"""Reads the text form of RoPE scalings that `str` writes: `yarn:4,beta_fast=16`, `linear:to=32k`, `none`."""

from __future__ import annotations

import difflib
from dataclasses import Field
from typing import Any

from hf_longctx.rope.base import Scaling, names, registry, text_name

#: No length has more; Python refuses to read numbers of thousands of digits, with a message of its own.
_DIGITS = 15
_SUFFIXES = {"k": 1024, "m": 1024 * 1024}


def parse(text: str | Scaling) -> Scaling:
    """Read a scaling from its text form, the inverse of `str`.

    The form is `name`, or `name:factor,option=value,...`, with `to=LENGTH` in place of the factor for a target; k is
    1024 and m is 1024 x 1024 tokens; lists are joined by `/`.

    Args:
        text: The text; an object is returned as it is.

    Raises:
        TypeError: If it is neither.
        ValueError: If the method or an option is unknown or given twice, or a value is malformed or out of range.

    >>> parse("yarn:4,beta_fast=16")
    YaRN(factor=4.0, target=None, beta_fast=16.0, beta_slow=1.0, attention_factor=None, mscale=None, \
mscale_all_dim=None, truncate=True)
    >>> str(parse("linear:to=32k"))
    'linear:to=32768'
    """
    if isinstance(text, Scaling):
        return text
    if not isinstance(text, str):
        raise TypeError(f"rope must be a text such as 'yarn:4' or a Scaling, got {text!r} ({type(text).__name__})")
    name, colon, rest = text.strip().partition(":")
    method = _method(name.strip())
    arguments: dict[str, Any] = {}
    # A trailing colon or comma is a slip worth naming, so empty parts are kept and refused below.
    for position, part in enumerate(rest.split(",") if colon else []):
        key, value = _argument(method, text, part.strip(), position)
        if key in arguments:
            raise ValueError(f"rope {text!r}: {key} is given twice; give it once")
        arguments[key] = value
    return method(**arguments)


def _method(name: str) -> type[Scaling]:
    known = registry()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name.lower().replace("_", "-"), names(), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"unknown RoPE scaling {name!r}: {hint}choose one of {', '.join(names())}")


def _argument(method: type[Scaling], text: str, part: str, position: int) -> tuple[str, Any]:
    """Read one comma-separated part into a field's name and value."""
    key, equals, value = (piece.strip() for piece in part.partition("="))
    if not equals and position == 0 and part and "factor" in method.extents():
        return "factor", _number(text, "factor", part)
    extents = {("to" if extent == "target" else extent): extent for extent in sorted(method.extents())}
    options = {text_name(spec): spec for spec in method.options()}
    if not equals or not (key in extents or key in options):
        known = [*extents, *options]
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near and equals else ""
        allowed = f"options are {', '.join(known)}, written option=value" if known else f"write just {method.name!r}"
        raise ValueError(f"rope {text!r}: cannot read {part!r}; {hint}{allowed}")
    if key == "to":
        return "target", _length(text, value)
    if key == "factor":
        return "factor", _number(text, "factor", value)
    return options[key].name, _option(text, options[key], value)


def _option(text: str, spec: Field[Any], value: str) -> Any:
    kind = spec.metadata.get("kind", "number")
    if kind == "positives":
        return tuple(_number(text, text_name(spec), entry) for entry in value.split("/"))
    if kind == "flag":
        if value not in ("true", "false"):
            raise ValueError(f"rope {text!r}: {text_name(spec)} must be true or false, got {value!r}")
        return value == "true"
    return _number(text, text_name(spec), value)


def _number(text: str, field: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        length = field == "factor" and value[-1:].lower() in _SUFFIXES
        hint = f"; for a length write to={value}" if length else ""
        raise ValueError(f"rope {text!r}: {field} must be a number such as 4 or 1.5, got {value!r}{hint}") from None


def read_length(value: str) -> int:
    """Read a length in tokens: digits, or digits and k (1024) or m (1024 x 1024).

    Raises:
        ValueError: If it is spelled otherwise.

    >>> read_length("32k"), read_length("4096")
    (32768, 4096)
    """
    multiple = _SUFFIXES.get(value[-1:].lower(), 1)
    digits = value[:-1] if multiple > 1 else value
    if not (digits.isascii() and digits.isdigit() and len(digits) <= _DIGITS):
        raise ValueError(f"must be a length in tokens such as 32768 or 32k, got {value!r}")
    return int(digits) * multiple


def _length(text: str, value: str) -> int:
    try:
        return read_length(value)
    except ValueError as error:
        raise ValueError(f"rope {text!r}: to {error}") from None
