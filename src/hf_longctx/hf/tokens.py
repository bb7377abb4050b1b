"""What Mamba layers are told of a forward's tokens: what is padding, and which packed document is whose."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_longctx.hf.cache_argument import cache_among
from hf_longctx.hf.documents import documents


class Tokens(NamedTuple):
    """What a mixer needs to know of the tokens of a forward; a tuple, so that accelerate moves it between devices.

    Attributes:
        valid: (B, new) bool, False for padding; None where all are real.
        documents: (B, new) numbers of packed documents, or None.
    """

    valid: Tensor | None = None
    documents: Tensor | None = None


def tokens_of(decoder: Any, kwargs: dict[str, Any], rows: int, new: int) -> Tokens:
    """What is padding among the new tokens of a forward, and which document is whose.

    Args:
        decoder: the decoder.
        kwargs: keyword arguments of its forward, the cache included.
        rows: of the batch.
        new: how many tokens there are in each.

    Raises:
        ValueError: a mask from which padding cannot be told.
    """
    cache, mask, ids = cache_among(kwargs), kwargs.get("attention_mask"), kwargs.get("position_ids")
    seen = 0 if cache is None else int(cache.get_seq_length())
    valid = None
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            what = f"of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"in a {type(mask).__name__}"
            raise ValueError(
                f"{type(decoder).__name__} has Mamba layers and was given a mask {what}: pass a 2-D attention_mask (1 "
                "for real tokens) or none"
            )
        if mask.shape[1] < seen + new:
            raise ValueError(
                f"attention_mask has {mask.shape[1]} columns, but the cache holds {seen} tokens and {new} are new: "
                f"pass a mask for all {seen + new}"
            )
        valid = mask[:, seen : seen + new].bool()
        valid = None if bool(valid.all()) else valid
    if seen or new == 1 or ids is None:
        return Tokens(valid)
    # One row of position ids holds for all rows.
    real = torch.ones(rows, new, dtype=torch.bool, device=ids.device) if valid is None else valid
    return Tokens(valid, documents(real, ids))
