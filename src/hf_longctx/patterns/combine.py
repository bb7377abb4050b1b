"""Patterns made of patterns: unions, one per head, and a pattern seen through a window."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from hf_longctx.patterns.base import Pattern, whole
from hf_longctx.patterns.geometry import Own, Shape, within
from hf_longctx.patterns.rows import Rows


@dataclass(frozen=True)
class Union(Pattern, name=None):
    """A key is seen where any of the members lets it. Made by `a | b`."""

    members: tuple[Pattern, ...]

    @classmethod
    def of(cls, *patterns: Pattern) -> Pattern:
        """The union of several, flattened and without repeats; a single one is returned as it is."""
        flat: list[Pattern] = []  # by equality: a pattern of one's own may hold what has no hash
        for pattern in patterns:
            if not isinstance(pattern, Pattern):
                raise TypeError(f"{pattern!r} is not a pattern: join patterns such as SlidingWindow(1024) | Global(4)")
            for member in pattern.members if isinstance(pattern, Union) else (pattern,):
                flat += [] if any(equal(member, one) for one in flat) else [member]
        return flat[0] if len(flat) == 1 else cls(tuple(flat))

    @property
    def by_head(self) -> bool:  # type: ignore[override]
        """Whether any member differs by head."""
        return any(m.by_head for m in self.members)

    @property
    def period(self) -> int:
        """The common period."""
        return math.lcm(*(m.period for m in self.members))

    def allows(self, q: Tensor, k: Tensor, *, layer: int = 0, head: int = 0) -> Tensor:
        """Any member allows."""
        return reduce(torch.logical_or, (m.allows(q, k, layer=layer, head=head) for m in self.members))

    def rows(self, q: Tensor, *, layer: int = 0, head: int = 0) -> Rows | None:
        """All members' spans and combs."""
        total = Rows(q)
        for member in self.members:
            rows = member.rows(q, layer=layer, head=head)
            if rows is None:
                return None
            total = total | rows
        return total

    def pieces(self, *, layer: int = 0, head: int = 0) -> tuple[Shape, ...]:
        """All members' shapes; one known by its rule alone is a shape of its own."""
        each = [(m, m.pieces(layer=layer, head=head)) for m in self.members]
        return tuple(s for m, shapes in each for s in ((Own(m, layer, head),) if shapes is None else shapes))

    def earliest(self, q: Tensor) -> Tensor | None:
        """The lowest of the members'."""
        return _lowest(self.members, q)

    def keeps(self, position: Any, now: Any) -> Any:
        """While any member may see it."""
        return reduce(lambda a, b: a | b, (m.keeps(position, now) for m in self.members))

    def within(self, window: int) -> Pattern:
        """Each member through the window."""
        return Union.of(*(m.within(window) for m in self.members))

    def __str__(self) -> str:
        return "+".join(str(m) for m in self.members)


@dataclass(frozen=True)
class Heads(Pattern, name=None):
    """A pattern for each key-value head, or for an equal share of them.

    Args:
        entries: one pattern per key-value head, or fewer whose number divides it: then each covers a run of heads.

    >>> from hf_longctx.patterns import Full, SlidingWindow
    >>> str(Heads([SlidingWindow(64), Full()]))
    'heads(window:64|full)'
    >>> [str(p) for p in Heads([SlidingWindow(64), Full()]).spread(4)]
    ['window:64', 'window:64', 'full', 'full']
    """

    entries: tuple[Pattern, ...]

    def __init__(self, entries: Iterable[Pattern]) -> None:
        entries = tuple(entries)
        if not entries:
            raise ValueError("Heads needs at least one pattern, such as Heads([SlidingWindow(64), Full()])")
        for i, entry in enumerate(entries):
            if not isinstance(entry, Pattern) or isinstance(entry, Heads):
                raise TypeError(f"Heads entry {i} is {entry!r}: it must be a pattern that is not itself Heads")
        object.__setattr__(self, "entries", entries)

    by_head = True

    @property
    def period(self) -> int:
        """The common period."""
        return math.lcm(*(e.period for e in self.entries))

    def spread(self, kv_heads: int) -> tuple[Pattern, ...]:
        """The pattern of each of `kv_heads` key-value heads; ValueError where the entries do not divide them."""
        if kv_heads % len(self.entries):
            raise ValueError(
                f"{self} has {len(self.entries)} entries, which does not divide the {kv_heads} key-value heads: "
                f"give a number of entries that does (one per head, or an equal share each)"
            )
        share = kv_heads // len(self.entries)
        return tuple(e for e in self.entries for _ in range(share))

    def runs(self, kv_heads: int) -> list[tuple[Pattern, range]]:
        """The patterns of `kv_heads` heads, each with the run of heads that it is for."""
        found: list[tuple[Pattern, range]] = []
        for head, one in enumerate(self.spread(kv_heads)):
            if found and equal(found[-1][0], one):
                found[-1] = (found[-1][0], range(found[-1][1].start, head + 1))
            else:
                found.append((one, range(head, head + 1)))
        return found

    def _entry(self, head: int) -> Pattern:
        if not 0 <= head < len(self.entries):
            raise ValueError(
                f"head is {head}, but {self} has entries 0 to {len(self.entries) - 1}: "
                "use `Heads(pattern.spread(kv_heads))` for one entry per head"
            )
        return self.entries[head]

    def allows(self, q: Tensor, k: Tensor, *, layer: int = 0, head: int = 0) -> Tensor:
        """What entry `head` allows."""
        return self._entry(head).allows(q, k, layer=layer, head=head)

    def rows(self, q: Tensor, *, layer: int = 0, head: int = 0) -> Rows | None:
        """The rows of entry `head`."""
        return self._entry(head).rows(q, layer=layer, head=head)

    def earliest(self, q: Tensor) -> Tensor | None:
        """The lowest of the heads': information may change heads between layers."""
        return _lowest(self.entries, q)

    def keeps(self, position: Any, now: Any) -> Any:
        """While any head may see it."""
        return reduce(lambda a, b: a | b, (e.keeps(position, now) for e in self.entries))

    def within(self, window: int) -> Pattern:
        """Each entry through the window."""
        return Heads(e.within(window) for e in self.entries)

    def __or__(self, other: Pattern) -> Pattern:
        """Each entry joined with `other`, or entry by entry with other Heads of the same number."""
        if not isinstance(other, Heads):
            return Heads(e | other for e in self.entries)
        if len(other.entries) != len(self.entries):
            raise ValueError(
                f"{self} and {other} have different numbers of entries: spread them to the same number first"
            )
        return Heads(a | b for a, b in zip(self.entries, other.entries))

    def __ror__(self, other: Pattern) -> Pattern:
        return Heads(other | e for e in self.entries)

    def __str__(self) -> str:
        return f"heads({'|'.join(str(e) for e in self.entries)})"


@dataclass(frozen=True)
class Windowed(Pattern, name=None):
    """A pattern intersected with a sliding window: what a layer with a window of its own leaves of it.

    Made by `pattern.within(window)`, which puts each member of a union or of `Heads` behind the window.

    >>> from hf_longctx.patterns import Block, Global
    >>> str((Block(8) | Global(2)).within(4))
    'block:8,0&window:4+global:2&window:4'
    """

    inner: Pattern
    window: int

    def __post_init__(self) -> None:
        whole(self, "window", self.window)

    @property
    def by_head(self) -> bool:  # type: ignore[override]
        """As the inner pattern."""
        return self.inner.by_head

    @property
    def period(self) -> int:
        """As the inner pattern."""
        return self.inner.period

    def allows(self, q: Tensor, k: Tensor, *, layer: int = 0, head: int = 0) -> Tensor:
        """Both allow."""
        return self.inner.allows(q, k, layer=layer, head=head) & (q - k < self.window)

    def rows(self, q: Tensor, *, layer: int = 0, head: int = 0) -> Rows | None:
        """The inner rows, cut to the window."""
        rows = self.inner.rows(q, layer=layer, head=head)
        return None if rows is None else rows.within(self.window)

    def pieces(self, *, layer: int = 0, head: int = 0) -> tuple[Shape, ...]:
        """The inner shapes, cut to the window."""
        shapes = self.inner.pieces(layer=layer, head=head)
        each = (Own(self.inner, layer, head),) if shapes is None else shapes
        return tuple(cut for shape in each if (cut := within(shape, self.window)) is not None)

    def earliest(self, q: Tensor) -> Tensor:
        """The later of the two (an upper bound for the reach where the inner pattern has holes)."""
        inner = self.inner.earliest(q)
        outer = q - (self.window - 1)
        return outer if inner is None else torch.maximum(inner, outer)

    def keeps(self, position: Any, now: Any) -> Any:
        """While both may see it."""
        return self.inner.keeps(position, now) & (now - position < self.window)

    def within(self, window: int) -> Pattern:
        """The narrower window."""
        return Windowed(self.inner, min(self.window, window))

    def __str__(self) -> str:
        return f"{self.inner}&window:{self.window}"


def equal(a: Pattern, b: Pattern) -> bool:
    """Whether two patterns are equal; those that cannot say, as they hold tensors, are different."""
    try:
        return a is b or bool(a == b)
    except (RuntimeError, ValueError):  # what tensors and arrays of several elements raise
        return False


def _lowest(patterns: tuple[Pattern, ...], q: Tensor) -> Tensor | None:
    lows = [p.earliest(q) for p in patterns]
    known = [low for low in lows if low is not None]
    return reduce(torch.minimum, known) if len(known) == len(lows) else None


def leaves(pattern: Pattern) -> Iterator[Pattern]:
    """The patterns that a pattern is made of, down to those made of none.

    >>> from hf_longctx.patterns import parse
    >>> [str(one) for one in leaves(parse("heads(block:8+global:2|full)"))]
    ['block:8,0', 'global:2', 'full']
    """
    inner: tuple[Pattern, ...]
    if type(pattern) is Union:
        inner = pattern.members
    elif type(pattern) is Heads:
        inner = pattern.entries
    elif type(pattern) is Windowed:
        inner = (pattern.inner,)
    else:
        yield pattern
        return
    for one in inner:
        yield from leaves(one)
