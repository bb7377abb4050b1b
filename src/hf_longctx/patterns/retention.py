"""How many keys a cache must keep under a pattern, worked out from `keeps` alone."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from hf_longctx.patterns.base import Pattern

#: A key that a query this far on may still see is kept for ever.
_FAR = 1 << 40
#: Tokens looked at before the keys kept are called unbounded.
_LONGEST = 1 << 22
#: Consecutive late keys of which none may last for ever: enough to meet one that does once in a block.
_LATE = 1 << 12
#: Longest period of a pattern that is looked at in full.
_LONGEST_PERIOD = 1 << 18


@lru_cache(maxsize=256)
def most_kept(pattern: Pattern) -> int | None:
    """The most earlier keys that the next query or a later one may still see; None where they grow without bound.

    A key that no query may see any more must never be seen again, as `keeps` promises.

    >>> from hf_longctx.patterns import Block, Global, SlidingWindow, Strided
    >>> most_kept(SlidingWindow(1024) | Global(4)), most_kept(Block(256, 1)), most_kept(Strided(8, 8))
    (1027, 511, None)
    """
    # A look at some keys answers most questions: late ones that last for ever, or lives too long to follow.
    late = _LONGEST + torch.arange(_LATE)
    some = torch.cat([torch.arange(64), torch.tensor([1 << i for i in range(6, 23)]) + torch.arange(17), late])
    gone = _first_unseen(pattern, some)
    if bool((gone[-_LATE:] >= _FAR).any()):
        return None
    n = max(64, 1 << (2 * int((gone - some)[gone < _FAR].max())).bit_length()) if bool((gone < _FAR).any()) else 64
    while n <= _LONGEST:
        born = torch.arange(n)
        gone = _first_unseen(pattern, born)
        lasting = gone >= _FAR
        life = torch.where(lasting, 0, gone - born)
        settled = not bool(lasting[n // 2 :].any()) and int(life.max()) <= n // 2
        if settled and min(pattern.period, _LONGEST_PERIOD) <= n // 2:
            # At `now` these have been born and are not gone: a running sum of births less deaths.
            deaths = torch.bincount(gone[gone <= n], minlength=n + 1)
            alive = torch.cat([torch.zeros(1, dtype=torch.long), torch.ones(n, dtype=torch.long)]) - deaths
            return int(alive.cumsum(0).max())
        n *= 2
    return None


def _first_unseen(pattern: Pattern, born: Tensor) -> Tensor:
    """The first `now`, after its own position, at which each key is kept no more; `_FAR` where there is none."""
    low, high = born, torch.full_like(born, _FAR)  # kept at low (or not yet there), not known at high
    while bool((high - low > 1).any()):
        now = (low + high) // 2
        kept = torch.as_tensor(pattern.keeps(born, now)).expand(born.shape)
        low, high = torch.where(kept, now, low), torch.where(kept, high, now)
    return high
