"""Packed documents, told apart by position ids alone."""

from __future__ import annotations

import torch
from torch import Tensor


def documents(valid: Tensor, position_ids: Tensor | None) -> Tensor | None:
    """Number each token's document. A new one begins where position ids restart among the real tokens.

    They do where an id is lower than the one before, or again 0. A jump forward is no restart: position skipping
    trains on those.

    Args:
        valid: (B or 1, L) bool, False for padding.
        position_ids: (B or 1, L), or None.

    Returns:
        (B, L) int64, or None where there is one document, or position ids do not tell.

    >>> documents(torch.ones(1, 5, dtype=torch.bool), torch.tensor([[0, 1, 2, 0, 1]]))
    tensor([[0, 0, 0, 1, 1]])
    >>> documents(torch.ones(1, 5, dtype=torch.bool), torch.tensor([[0, 1, 1, 2, 2]]))
    """
    if position_ids is None or position_ids.ndim != 2 or position_ids.shape[1] != valid.shape[1]:
        return None
    rows, length = max(valid.shape[0], position_ids.shape[0]), valid.shape[1]
    valid, ids = valid.expand(rows, -1), position_ids.to(valid.device).expand(rows, -1)
    slots = torch.arange(length, device=valid.device)
    last = torch.where(valid, slots, -1).cummax(-1).values
    before = torch.nn.functional.pad(last[:, :-1], (1, 0), value=-1)
    previous = ids.gather(1, before.clamp(min=0))
    restart = valid & (before >= 0) & ((ids < previous) | ((ids == previous) & (ids == 0)))
    return restart.cumsum(-1) if bool(restart.any()) else None
