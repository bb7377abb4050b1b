"""What the mask of a forward says of its tokens, and what its layers have worked out of that.

The layers of a forward share one mask tensor. So whatever follows from it is remembered for as long as it lives:
not longer, and not by what it holds, so that nothing is ever stale, and that inference mode makes no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextvars import ContextVar
from functools import cached_property
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from hf_longctx.attention.layout import Layout
from hf_longctx.attention.recent import Remembers
from hf_longctx.hf.documents import documents

#: What to do instead of giving a mask of one's own.
OWN_MASK = "patched attention builds its own, so pass a 2-D attention_mask (1 for real tokens) or none, not a 4-D one"
#: The mask of a running forward -> its version, and its places. It holds neither the mask nor a view of it.
_KNOWN = WeakTensorKeyDictionary()


class _Begun(NamedTuple):
    """The forward that began last: the decoder's config, and what some families do not hand on to their attention."""

    config: Any = None
    ids: Callable[[], Tensor | None] = lambda: None
    cache: Callable[[], Any] = lambda: None


_BEGUN: ContextVar[_Begun] = ContextVar("begun", default=_Begun())  # noqa: B039  it is never changed


class Places(Remembers):
    """Where the tokens of a forward are.

    Args:
        table: (B or 1, seen) int64 logical positions of all tokens seen, -1 for padding; nobody may write to it.
        host: the same as one row on the CPU, (1, seen), if they are alike in all rows and known there.
        ids: position ids of the forward, (B or 1, queries), if it was given any.

    Attributes:
        table: the same.
    """

    def __init__(self, table: Tensor, host: Tensor | None = None, ids: Tensor | None = None) -> None:
        self.table = table
        self._ids = ids
        if host is not None:
            self.host = host  # known beforehand
        self._known: dict[Hashable, Any] = {}
        self._stored: list[tuple[Tensor, Tensor]] = []

    @classmethod
    def of(cls, mask: Tensor, config: Any) -> Places:
        """The places of a forward, by its mask (B or 1, 1, 1, seen) and the decoder's config."""
        version = None if mask.is_inference() else mask._version
        known = _KNOWN.get(mask)
        if known is None or known[0] != version:  # made before the forward, or moved to another device
            _check_positions(mask)
            known = _KNOWN[mask] = (version, cls(mask[:, 0, 0, :].clone(), ids=_begun(config).ids()))
        return known[1]

    @cached_property
    def host(self) -> Tensor | None:
        """Positions on the CPU, (1, seen), where every row is tokens 0 to seen - 1, the common case; else None."""
        size, device = self.table.shape[1], self.table.device
        return torch.arange(size)[None] if bool((self.table == torch.arange(size, device=device)).all()) else None

    def at(self, slots: Tensor) -> Tensor:
        """The positions of the tokens `slots` (stored,) on the CPU: (B or 1, stored), one tensor for equal slots."""
        if len(slots) == self.table.shape[1]:
            return self.table
        for known, positions in self._stored:
            if torch.equal(known, slots):
                return positions
        positions = (self.table if self.host is None else self.table[:1])[:, slots]
        self._stored.append((slots.clone(), positions))
        return positions

    def layout(self, queries: int, positions: Tensor, position_ids: Tensor | None, rows: int) -> Layout:
        """The layout of a call whose keys are at `positions`, one for all layers.

        Args:
            queries: number of new tokens.
            positions: `table`, or what `at` gave.
            position_ids: (B or 1, queries); where they restart without a cache, documents are packed. Those of the
                forward if None.
            rows: B.
        """
        position_ids = self._ids if position_ids is None else position_ids
        ids = position_ids if positions is self.table and positions.shape[1] == queries > 1 else None
        version = None if ids is None or ids.is_inference() else ids._version
        # The entry holds on to the ids, so that no other tensor comes to their number.
        _, layout = self.remember(
            ("layout", queries, rows, id(positions), id(ids), version),
            lambda: (ids, self._layout(queries, positions, ids, rows)),
        )
        return layout

    def _layout(self, queries: int, positions: Tensor, ids: Tensor | None, rows: int) -> Layout:
        keys = positions.shape[1]
        valid = None if ids is None else positions >= 0
        packed = None if valid is None else documents(valid, ids)
        if valid is not None and packed is not None:  # one row of either holds for all
            return Layout.of(queries, keys, valid=valid.expand(rows, -1), segments=packed.expand(rows, -1))
        host = self._host(positions)
        if host is not None and bool((host == torch.arange(keys)).all()):
            return Layout.of(queries, keys)
        return Layout.of(queries, keys, positions=positions, host=host)

    def _host(self, positions: Tensor) -> Tensor | None:
        if self.host is None or positions is self.table:
            return self.host
        return next(self.host[:, slots] for slots, known in self._stored if known is positions)

    def lacks(self, queries: int, window: int | None) -> bool:
        """Whether a cache has dropped, by slot, real tokens that a query looks back on.

        Args:
            queries: number of new tokens.
            window: how many tokens a query sees, itself included; None for all before it.
        """
        table, beyond = self.table if self.host is None else self.host, torch.iinfo(torch.int64).max
        first, lowest = (at.masked_fill(at < 0, beyond).amin(-1) for at in (table, table[:, -queries:]))
        needed = torch.zeros_like(lowest) if window is None else (lowest - window + 1).clamp_min(0)
        return bool(((lowest < beyond) & (first > needed)).any())


def _check_positions(mask: Tensor) -> None:
    """Raise unless a mask (B or 1, 1, 1, seen) counts the real tokens of each row, as `made_for` is given it."""
    real = mask >= 0
    first = mask.masked_fill(~real, torch.iinfo(mask.dtype).max).amin(-1, keepdim=True)
    if not bool((torch.where(real, first + real.cumsum(-1) - 1, -1) == mask).all()):
        raise ValueError(f"attention_mask is a {mask.dtype} mask of shape {tuple(mask.shape)}: {OWN_MASK}")


def made_for(mask: Tensor, config: Any, host: Tensor | None = None) -> Tensor:
    """Say of a new mask whose it is, by the decoder's config, and that its rows are `host` (1, seen) if given."""
    places = Places(mask[:, 0, 0, :].clone(), host, _begun(config).ids())
    _KNOWN[mask] = (None if mask.is_inference() else mask._version, places)
    return mask


def begin(config: Any, masks: Any, ids: Tensor | None, cache: Any) -> None:
    """A forward begins: with position ids, a cache, and masks of the caller's, who may have written to them since.

    Nothing of it is kept alive.
    """
    kept = {"ids": None if ids is None else TensorWeakRef(ids), "cache": None if cache is None else ref(cache)}
    _BEGUN.set(_Begun(config, **{name: given for name, given in kept.items() if given is not None}))
    for mask in masks.values() if isinstance(masks, dict) else (masks,):
        if isinstance(mask, Tensor):
            _KNOWN.pop(mask, None)


def running_cache(config: Any) -> Any:
    """The cache of the forward that is running, by the decoder's config; None without one."""
    return _begun(config).cache()


def _begun(config: Any) -> _Begun:
    begun = _BEGUN.get()
    return begun if begun.config is config else _Begun()
