"""The cache's name among a model's arguments and outputs: `past_key_values`, and `cache` since transformers 5.24."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

_NAMES = ("cache", "past_key_values")


@cache
def cache_name() -> str:
    """What the installed transformers calls it.

    >>> cache_name() in ("cache", "past_key_values")
    True
    """
    from transformers.generation.utils import ALL_CACHE_NAMES

    return str(ALL_CACHE_NAMES[0])


def cache_among(kwargs: Mapping[str, Any]) -> Any:
    """The cache among keyword arguments, under either name; None if there is none."""
    return next((kwargs[name] for name in _NAMES if kwargs.get(name) is not None), None)


def with_cache(kwargs: Mapping[str, Any], value: Any) -> dict[str, Any]:
    """The keyword arguments with `value` as the cache, under the name that they use already, or else transformers'."""
    name = next((name for name in _NAMES if name in kwargs), cache_name())
    return {**kwargs, name: value}


def cache_of(output: Any) -> Any:
    """The cache in a model's output."""
    return getattr(output, cache_name())
