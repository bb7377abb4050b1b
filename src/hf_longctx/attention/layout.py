"""Where the tokens are: which stored key belongs to which document, at which logical position."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from hf_longctx.attention.recent import Remembers
from hf_longctx.patterns import Pattern
from hf_longctx.patterns.geometry import shapes_of

_Value = TypeVar("_Value")
#: Positions that are copied from a device as a whole to be looked at: one wait instead of several.
_FEW = 1 << 16


@dataclass(frozen=True, eq=False)
class Layout(Remembers):
    """The tokens of one call. Queries are the last `queries` of the stored tokens.

    Attributes:
        queries: number of query rows, Lq.
        keys: number of stored keys, Lk.
        positions: (B or 1, Lk) int64 logical positions, -1 for padding; None where they are 0 to Lk - 1.
        documents: (B or 1, Lk) int64 document numbers; None where there is one document.
        given: True where the caller named the positions, which may then have gaps and any order.
        host: the same positions on the CPU, (1, Lk), where they are known there without a look at the device.
    """

    queries: int
    keys: int
    positions: Tensor | None = None
    documents: Tensor | None = None
    given: bool = False
    host: Tensor | None = None
    _known: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        queries: int,
        keys: int,
        *,
        valid: Tensor | None = None,
        segments: Tensor | None = None,
        positions: Tensor | None = None,
        host: Tensor | None = None,
    ) -> Layout:
        """Number the real tokens of each document from 0.

        Documents are the maximal runs of equal ids among the stored tokens, padding included: a padding token with
        an id of its own ends the document, one with the document's id does not.

        Args:
            queries: number of query rows.
            keys: number of stored keys.
            valid: (B, Lk) bool, False for padding.
            segments: (B, Lk) integer ids of packed documents.
            positions: (B or 1, Lk) integer logical positions, negative for padding.
            host: the same on the CPU, where that is known.

        >>> real = torch.tensor([[False, True, True, True, True]])
        >>> layout = Layout.of(5, 5, segments=torch.tensor([[7, 7, 7, 2, 2]]), valid=real)
        >>> layout.positions.tolist(), layout.documents.tolist()
        ([[-1, 0, 1, 0, 1]], [[0, 0, 0, 1, 1]])
        """
        documents = None
        if segments is not None:
            new = torch.zeros_like(segments, dtype=torch.bool)
            new[:, 1:] = segments[:, 1:] != segments[:, :-1]
            documents = new.cumsum(1)
        if positions is not None:
            # The common case, one document from its start, is worth a look: everything is cheaper then. On other
            # devices looking would make the host wait.
            if documents is None and positions.device.type == "cpu" and bool((positions == torch.arange(keys)).all()):
                return cls(queries, keys)
            return cls(queries, keys, positions.long().clamp(min=-1), documents, given=True, host=host)
        if valid is not None:
            real = valid
        elif documents is not None:
            real = torch.ones_like(documents, dtype=torch.bool)
        else:
            return cls(queries, keys)
        before = real.cumsum(1) - real.long()  # real tokens stored earlier
        if documents is not None:
            before = before - torch.where(new, before, 0).cummax(1).values
        return cls(queries, keys, torch.where(real, before, -1), documents)

    def shared(
        self, what: Hashable, pattern: Pattern, make: Callable[[], _Value], *, layer: int, heads: range
    ) -> _Value:
        """`remember` for what a pattern comes to in these heads; one that differs by layer serves no other layer."""
        shapes, next_layer = (
            shapes_of(pattern, at, heads if pattern.by_head else heads[:1]) for at in (layer, layer + 1)
        )
        return self.remember((what, shapes), make) if shapes == next_layer else make()

    @property
    def plain(self) -> bool:
        """Whether there is one document and no padding."""
        return self.positions is None and self.documents is None

    @property
    def batch(self) -> int:
        """Rows of the batch that are told apart: 1 where all are alike."""
        return max(1 if x is None else len(x) for x in (self.positions, self.documents))

    def ordered(self) -> bool:
        """Whether no key stored after a query can be visible to it."""
        if not self.given or self.positions is None:
            return True
        return self.documents is None and self.remember("ordered", self._ascending)

    def _ascending(self) -> bool:
        table = self.looked_at()
        later = table[:, 1:]
        return bool(((later < 0) | (later > table.cummax(1).values[:, :-1])).all())

    def near(self) -> Layout:
        """The same on the CPU, where looking makes no one wait; copied once."""
        if all(x is None or x.device.type == "cpu" for x in (self.positions, self.documents)):
            return self
        return self.remember("near", self._copied)

    def _copied(self) -> Layout:
        positions, documents = self.host, self.documents
        if positions is None and self.positions is not None:
            positions = self.positions.cpu()
        return Layout(
            self.queries, self.keys, positions, None if documents is None else documents.cpu(), self.given, self.host
        )

    def looked_at(self) -> Tensor:
        """The positions (B or 1, Lk) to decide by: on the CPU where they are known there, or few."""
        assert self.positions is not None
        found = self.near().positions if self.host is not None or self.positions.numel() <= _FEW else None
        return self.positions if found is None else found

    def visible(
        self,
        pattern: Pattern,
        rows: tuple[int, int],
        keys: tuple[int, int] | Tensor,
        *,
        device: torch.device,
        layer: int = 0,
        heads: range = range(1),
    ) -> Tensor:
        """Which keys the rows may see, padding, documents and causality included.

        Args:
            pattern: the rule.
            rows: first and one past the last query row.
            keys: first and one past the last stored key, or their indices, (S,) or (B or 1, heads or 1, S).
            device: where the mask shall be.
            layer: index of the layer, for patterns that depend on it.
            heads: indices of the key-value heads, for patterns that depend on them.

        Returns:
            Bool tensor (B or 1, heads or 1, rows, keys).
        """
        at = torch.arange(*keys, device=device) if isinstance(keys, tuple) else keys
        at = at if at.dim() == 3 else at[None, None]
        first = self.keys - self.queries
        row = torch.arange(first + rows[0], first + rows[1], device=device)[None, None]
        q, k = (x if self.positions is None else _take(self.positions, x) for x in (row, at))
        q, k = q[..., None], k[:, :, None, :]
        seen = (k <= q) & (k >= 0)
        if self.documents is not None:
            seen = seen & (_take(self.documents, row)[..., None] == _take(self.documents, at)[:, :, None, :])
        # A rule need not know about padding: show it real positions only.
        q, k = q.clamp(min=0), k.clamp(min=0)
        if not pattern.by_head:
            return seen & pattern.allows(q, k, layer=layer, head=heads[0])
        each = k.expand(-1, len(heads), -1, -1).split(1, dim=1)
        allowed = [pattern.allows(q, one, layer=layer, head=h) for h, one in zip(heads, each)]
        shape = torch.broadcast_shapes(q.shape, each[0].shape)
        return seen & torch.cat([x.expand(shape) for x in allowed], dim=1)


def _take(table: Tensor, at: Tensor) -> Tensor:
    """Look `at` (B or 1, H, S) up in `table` (B or 1, Lk), row by row."""
    batch = max(table.shape[0], at.shape[0])
    return table.expand(batch, -1).gather(1, at.expand(batch, -1, -1).flatten(1)).view(batch, *at.shape[1:])
