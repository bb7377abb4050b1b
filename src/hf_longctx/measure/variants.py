"""Variants: the ways of patching a model that one run compares."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

STOCK = "stock"
"""The name of the untouched model."""

AS_LOADED = "as-loaded"
"""The name of what a model was already patched with when it was given."""

_RESERVED = {STOCK: "the untouched model", AS_LOADED: "the model as it was loaded"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Variant:
    """A named way of patching a model; fields left None are left alone.

    Attributes:
        name: unique in a run, and fit to be part of a file name.
        attention: an attention pattern in its text form.
        rope: a RoPE scaling in its text form.
        mamba: which layers become Mamba-2 layers, in text form.
        backend: which attention backend computes it.
        own_windows: what becomes of windows that the model's own layers have.
    """

    name: str
    attention: str | None = None
    rope: str | None = None
    mamba: str | None = None
    backend: str | None = None
    own_windows: str | None = None

    def definition(self) -> dict[str, str]:
        """What to pass to `hf_longctx.patch`: the fields that are set, without the name.

        Returns:
            Keyword arguments in text form; empty for `stock`.

        >>> parse_variant("yarn2: rope=yarn:2").definition()
        {'rope': 'yarn:2'}
        """
        pairs = ((field.name, getattr(self, field.name)) for field in fields(self) if field.name != "name")
        return {name: value for name, value in pairs if value is not None}


def parse_variant(text: str) -> Variant:
    """Read `"name: rope=yarn:2 attention=window:1024+global:4"`.

    Args:
        text: a name, a colon, then `key=value` pairs with spaces between them. Values are not read here.

    Returns:
        The variant.

    Raises:
        ValueError: for a missing or unfit name, an unknown or repeated key, or no pattern, scaling or mixer at all.

    >>> parse_variant("w: attention=0=full;*=window:8 backend=dense")
    Variant(name='w', attention='0=full;*=window:8', rope=None, mamba=None, backend='dense', own_windows=None)
    """
    name, colon, rest = (part.strip() for part in text.partition(":"))
    if not colon or "=" in name:
        raise ValueError(f'variant {text!r} has no name: write it as "name: rope=yarn:2 attention=window:1024"')
    allowed = [field.name for field in fields(Variant) if field.name != "name"]
    values: dict[str, str] = {}
    for pair in _pairs(rest):
        key, equals, value = pair.partition("=")
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"variant {name!r} has an unknown key {key!r}: allowed are {', '.join(allowed)}.{hint}")
        if not equals or not value:
            raise ValueError(f"variant {name!r} gives no value for {key!r}: write {key}=VALUE without spaces")
        if key in values:
            raise ValueError(f"variant {name!r} gives {key!r} twice: keep one of them")
        values[key] = value
    return _checked(Variant(name, **values))


def _pairs(text: str) -> list[str]:
    """The `key=value` parts of a definition; a plan by layer may have spaces around its semicolons.

    >>> _pairs("attention=0=full; *=window:8 rope=yarn:2")
    ['attention=0=full;*=window:8', 'rope=yarn:2']
    """
    pairs: list[str] = []
    for word in text.split():
        goes_on = pairs and (pairs[-1].endswith((";", "=")) or word.startswith(";") or not word[0].isalpha())
        pairs[-1:] = [pairs[-1] + word] if goes_on else [*pairs[-1:], word]
    return pairs


def as_variants(
    given: Iterable[str | Variant] | Mapping[str, Mapping[str, str]],
    *,
    stock: bool | str,
    loaded: Variant | None = None,
) -> tuple[Variant, ...]:
    """The variants of a run, `stock` first.

    Args:
        given: variants, their text form, or a mapping from a name to keyword arguments of `hf_longctx.patch` as text.
        stock: whether the untouched model runs too; a text is what it is called in place of `stock`.
        loaded: what the model was patched with when it was given, if it was; runs after `stock`. One that defines
            nothing is a model that cannot be unpatched, and runs alone.

    Returns:
        At least one variant.

    Raises:
        ValueError: for a name used twice or reserved, or nothing to run.
        TypeError: for anything that is no variant.

    >>> [variant.name for variant in as_variants(["a: rope=linear:2"], stock=True)]
    ['stock', 'a']
    """
    if isinstance(given, str):
        given = [given]
    if isinstance(given, Mapping):
        given = [_from_mapping(name, definition) for name, definition in given.items()]
    given = list(given)
    if loaded and not loaded.definition() and (stock or given):
        raise ValueError(
            "the model has Mamba layers that were loaded or trained, so there is no stock model behind it to run or "
            "to patch: leave stock out (--no-stock, and --no-standard in cost; stock=False), name no variants, and "
            "measure the original by itself"
        )
    variants: list[Variant] = [Variant(STOCK if stock is True else stock)] if stock else []
    variants += [loaded] if loaded else []
    for item in given:
        if not isinstance(item, str | Variant):
            raise TypeError(f"variants holds {item!r}: give a Variant or its text form such as 'yarn2: rope=yarn:2'")
        variants.append(parse_variant(item) if isinstance(item, str) else _checked(item))
    names = [variant.name for variant in variants]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the variant name {name!r} is used {names.count(name)} times: give each its own name")
    if not variants:
        raise ValueError("there is nothing to run: name at least one variant, or leave the stock model in")
    return tuple(variants)


def _from_mapping(name: str, definition: Mapping[str, str]) -> Variant:
    return parse_variant(f"{name}: " + " ".join(f"{key}={value}" for key, value in definition.items()))


def _checked(variant: Variant) -> Variant:
    if variant.name in _RESERVED:
        raise ValueError(
            f"the variant name {variant.name!r} is reserved for {_RESERVED[variant.name]}: choose another"
        )
    if not _NAME.fullmatch(variant.name):
        raise ValueError(
            f"the variant name {variant.name!r} cannot be part of a file name: use up to 64 letters, digits, "
            "'.', '_' and '-', beginning with a letter or digit"
        )
    if variant.attention is None and variant.rope is None and variant.mamba is None:
        raise ValueError(f"variant {variant.name!r} changes nothing: give it attention=, rope= or mamba=")
    return variant
