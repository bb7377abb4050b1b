"""One length per sequence, for RoPE whose frequencies depend on it (dynamic NTK, LongRoPE).

Keys of one cache must all be rotated alike, which transformers' own update in each forward does not keep. Here a
`generate` call holds the length of prompt and new tokens together, a cache is stamped with the length of its first
use, and a bare forward uses its own. The length belongs to the model: threads that share one must take turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch

from hf_longctx.hf.cache_argument import cache_among
from hf_longctx.hf.rotary import hold, original_geometry, rotary_modules, table
from hf_longctx.rope import Scaling, parse
from hf_longctx.rope.base import registry

_HELD = "_longctx_length"
_STAMP = "longctx_length"


def length_dependent(model: Any) -> bool:
    """Whether the model's frequencies depend on the length of the sequence (dynamic NTK and LongRoPE patches).

    Such a model must be prefilled afresh for every length, under `held_length`.
    """
    scaling = _planned(model.config)
    return scaling is not None and scaling.length_dependent


@contextmanager
def held_length(model: Any, length: int) -> Iterator[None]:
    """Hold length-dependent frequencies at those of a sequence of `length` tokens; nothing happens for other models.

    `generate` holds a length of its own accord, unless one is held already. Hold one to go on with the same cache in
    several calls.

    Args:
        model: a patched model.
        length: tokens in all, prompt and new ones.
    """
    decoder = model.get_decoder()
    before = vars(decoder).get(_HELD)
    setattr(decoder, _HELD, length)
    try:
        yield
    finally:
        if before is None:
            delattr(decoder, _HELD)
        else:
            setattr(decoder, _HELD, before)


def is_held(model: Any) -> bool:
    """Whether a length is being held for the model."""
    return _HELD in vars(model.get_decoder())


def before_forward(decoder: Any, kwargs: dict[str, Any], tokens: int) -> None:
    """Choose the length whose frequencies this forward uses: the held one, the cache's, or the sequence's own.

    A cache is stamped with the length at its first use; keys of one cache are all rotated alike.
    """
    config = decoder.config
    scaling = _planned(config)
    if scaling is None or not scaling.length_dependent:
        return
    numbers = original_geometry(config)
    cache, positions = cache_among(kwargs), kwargs.get("position_ids")
    seen = int(cache.get_seq_length()) if cache is not None else 0
    held = vars(decoder).get(_HELD)
    stamped = getattr(cache, _STAMP, None) if seen else None
    # Lengths within the trained window share one table.
    if stamped and held and not torch.equal(table(scaling, numbers, stamped), table(scaling, numbers, held)):
        raise ValueError(
            f"rope {scaling}: past_key_values was filled for a length of {stamped}, but this call is for {held}, "
            "whose frequencies differ; start without the old cache, or fill it under "
            f"hf_longctx.held_length(model, {held})"
        )
    own = seen + tokens if positions is None else int(positions.max()) + 1
    length = stamped or held or _static_length(cache) or own
    if cache is not None:
        setattr(cache, _STAMP, length)
    hold(rotary_modules(decoder), scaling, numbers, length)


def _static_length(cache: Any) -> int | None:
    """The length that a preallocated cache is for."""
    from transformers import StaticCache

    return max(layer.get_max_length() for layer in cache.layers) if isinstance(cache, StaticCache) else None


@lru_cache(maxsize=64)
def _parsed(text: str, classes: tuple[type[Scaling], ...]) -> Scaling:
    """Read once, and again when a class is defined: a notebook may define a scaling a second time."""
    return parse(text)


def _planned(config: Any) -> Scaling | None:
    stored = getattr(config, "longctx", None)
    return _parsed(stored["rope"], tuple(registry().values())) if stored and stored.get("rope") else None
