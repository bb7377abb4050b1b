"""What a pattern is: a rule saying which earlier tokens each token may see.

A pattern is a frozen dataclass with one required method, `allows`. Everything else has a correct default that a
pattern may replace by something faster or sharper. Subclasses register themselves by name, so a new pattern is one
new file in this folder and nothing else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from hf_longctx.patterns.rows import Rows
from hf_longctx.patterns.rule import reads_head

if TYPE_CHECKING:
    from hf_longctx.patterns.geometry import Shape

#: Every registered pattern class by its text name. Looped over by the command line, the gallery and the tests.
REGISTRY: dict[str, type[Pattern]] = {}

#: What a pattern may say besides its rule, all of which follows from it.
_FOLLOWS = {"rows", "pieces", "earliest", "period", "count", "reach", "keeps", "within"}
#: Rows handled at once when counting, so that memory stays flat in the length.
_ROWS_AT_ONCE = 1 << 16
#: The largest size: products of two positions still fit int64.
_LARGEST = 1 << 31
#: Past this common period the exact search for the reach gives way to the sum of the layers' own bounds.
_LONGEST_PERIOD = 1 << 22


@dataclass(frozen=True, eq=False)
class Pattern:
    """A rule for visible keys. Subclass it as a frozen dataclass and define `allows`.

    Dataclasses compare by their fields; a plain subclass is equal to itself only, because nobody knows what it holds.
    A class that redefines a pattern's `allows` starts from the defaults, since what its parent knew need not hold.

    Positions are logical: a token's index among the real tokens of its own document, so that padding and packing
    never shift a pattern. Causality (k <= q) is implied everywhere and is not the pattern's business.

    A model keeps the text form of its pattern, so what `patch` takes must read back as it is: a name, and fields of
    int, float, bool or str, or one of these or None. With `name=None` a class is not registered; `attend` takes it.

    >>> @dataclass(frozen=True)
    ... class Every(Pattern, name=None):
    ...     step: int = 2
    ...
    ...     def allows(self, q, k, *, layer=0, head=0):
    ...         return k % self.step == 0
    >>> Every().count(5), Every().reach(1)
    (9, inf)
    """

    name: ClassVar[str | None] = None
    #: For people: when a key is seen (d = q - k), the paper, the models that use it, and a text form of usual size.
    sees: ClassVar[str] = ""
    source: ClassVar[str] = ""
    used_by: ClassVar[str] = ""
    typical: ClassVar[str] = ""
    #: True where `allows` depends on the (key-value) head; if left out, where its code reads `head`.
    by_head: ClassVar[bool] = False

    def __init_subclass__(cls, *, name: str | None = "", **kwargs: Any) -> None:
        """Register the class under `name` (its own name in snake case if left out; not at all if None)."""
        super().__init_subclass__(**kwargs)
        if "allows" in vars(cls):
            if "by_head" not in vars(cls):
                cls.by_head = reads_head(cls.allows)
            # What a parent says follows from the parent's rule, and this is another one.
            for follows in _FOLLOWS - vars(cls).keys():
                setattr(cls, follows, vars(Pattern)[follows])
        cls.name = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower() if name == "" else name
        if cls.name is None:
            return
        known = REGISTRY.get(cls.name)
        # The same class defined again (a notebook cell run twice) replaces itself; anything else is a clash.
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(
                f"pattern name {cls.name!r} is taken by {known.__module__}.{known.__qualname__}: "
                f"give {cls.__qualname__} another one with `class {cls.__name__}(Pattern, name=...)`"
            )
        REGISTRY[cls.name] = cls

    # ------------------------------------------------------------------ the rule

    def allows(self, q: Tensor, k: Tensor, *, layer: int = 0, head: int = 0) -> Tensor:
        """Whether query `q` may see key `k`; integer tensors that broadcast in, a bool tensor out.

        Args:
            q: logical positions of queries, any integer dtype.
            k: logical positions of keys.
            layer: index of the layer.
            head: index of the key-value head (all query heads of a group share its pattern). A rule whose code reads
                it is asked for each head, any other once for all (`by_head`).
        """
        raise TypeError(f"{type(self).__name__} must define `allows(self, q, k, *, layer=0, head=0)`")

    # ------------------------------------------------------------------ what follows from it

    def rows(self, q: Tensor, *, layer: int = 0, head: int = 0) -> Rows | None:
        """The visible keys of rows `q` (R,) as spans and steps, or None where they have no such form."""
        return None

    def pieces(self, *, layer: int = 0, head: int = 0) -> tuple[Shape, ...] | None:
        """The shapes whose union this pattern is (they may overlap); None where only its rule is known.

        Without shapes the engine looks for the tiles in which the rule lets anything through, which takes n x n / 2
        evaluations of `allows`, once for each length and layer, and memory that does not grow like that.
        """
        return None

    def earliest(self, q: Tensor) -> Tensor | None:
        """The lowest key that rows `q` may see far from the start, sinks left out; None where unbounded.

        Must never fall as `q` grows, and must repeat with `period`; `reach` follows it from layer to layer.
        """
        return None

    @property
    def period(self) -> int:
        """The shift in positions after which the pattern repeats itself."""
        return 1

    def count(self, n: int, *, layer: int = 0, head: int = 0) -> int:
        """Visible pairs among `n` tokens, exact, in memory that does not grow with n x n.

        >>> from hf_longctx.patterns import SlidingWindow, Full
        >>> SlidingWindow(3).count(10), Full().count(10)
        (27, 55)
        """
        total = 0
        if self.rows(torch.arange(0, 1), layer=layer, head=head) is not None:
            for q in _chunks(n, _ROWS_AT_ONCE):
                rows = self.rows(q, layer=layer, head=head)
                total += rows.count() if rows is not None else 0
            return total
        for q in _chunks(n, 1024):
            for k in _chunks(int(q[-1]) + 1, 1 << 14):
                seen = self.allows(q[:, None], k[None, :], layer=layer, head=head) & (k[None, :] <= q[:, None])
                total += int(seen.sum())
        return total

    def reach(self, layers: int = 1) -> float:
        """The largest distance that information travels through `layers` layers, in tokens.

        Infinite where unbounded. Sinks are left out: what they carry does not depend on distance. Where a pattern has
        holes that no other layer fills, such as dilated segments in a union, it is an upper bound.

        >>> from hf_longctx.patterns import SlidingWindow, Global
        >>> (SlidingWindow(1024) | Global(4)).reach(30)
        30690
        """
        return reach_through([self] * layers)

    def keeps(self, position: Any, now: Any) -> Any:
        """Whether a cached key at `position` may still be seen by a query at `now` or later (ints or tensors)."""
        return position >= 0

    def within(self, window: int) -> Pattern:
        """This pattern seen through a sliding window of `window` keys."""
        from hf_longctx.patterns.combine import Windowed

        return Windowed(self, window)

    def grid(self, n: int = 24, *, layer: int = 0, head: int = 0) -> str:
        """The pattern drawn for `n` tokens: a row per query, `#` where a key is seen.

        >>> from hf_longctx.patterns import SlidingWindow
        >>> print(SlidingWindow(2).grid(3))
        # . .
        # # .
        . # #
        """
        i = torch.arange(n)
        seen = self.allows(i[:, None], i[None, :], layer=layer, head=head).expand(n, n) & (i[None, :] <= i[:, None])
        return "\n".join(" ".join("#" if s else "." for s in row) for row in seen.tolist())

    # ------------------------------------------------------------------ text and algebra

    def __or__(self, other: Pattern) -> Pattern:
        """The union of two patterns: a key is seen where either lets it."""
        from hf_longctx.patterns.combine import Heads, Union

        if isinstance(other, Heads):
            return other.__ror__(self)
        return Union.of(self, other)

    def __str__(self) -> str:
        """The text form, which `hf_longctx.patterns.parse` reads back exactly; without a name the class's own."""
        name = self.name or type(self).__name__
        values = [
            (f"{f.name}=" if f.metadata.get("named") else "") + _spelled(getattr(self, f.name))
            for f in given_fields(type(self))
        ]
        return f"{name}:{','.join(values)}" if values else name


def reach_through(patterns: Sequence[Pattern]) -> float:
    """The largest distance that information travels down a stack of layers, given last layer first.

    `earliest` never falls as q grows, so following the lowest visible key greedily is exact. It repeats with the
    common period, so one period of starting points is enough.
    """
    if not patterns:
        return 0
    first = patterns[0]
    if type(first).reach is not Pattern.reach and all(one == first for one in patterns[1:]):
        return first.reach(len(patterns))
    period = math.lcm(*(p.period for p in patterns))
    if period > _LONGEST_PERIOD:
        return sum(reach_through([p]) for p in patterns)
    start = torch.arange(period)
    q = start
    for pattern in patterns:
        lower = pattern.earliest(q)
        if lower is None:
            return math.inf
        q = lower
    return int((start - q).max())


def whole(owner: object, field: str, value: object, least: int = 1) -> None:
    """Check that a size is a whole number of at least `least`; the error says which, and what is allowed."""
    label = f"{type(owner).__name__}.{field}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"{label} is {value!r}: it must be a whole number of at least {least}, such as {max(least, 64)}"
        )
    if value < least:
        raise ValueError(f"{label} is {value}: it must be at least {least}")
    if value > _LARGEST:
        raise ValueError(f"{label} is {value}: it must be at most {_LARGEST}; for no limit use the pattern 'full'")


def registered() -> tuple[type[Pattern], ...]:
    """The registered classes, as part of a key: what a text form means changes when a class is defined again."""
    return tuple(REGISTRY.values())


def given_fields(cls: type[Pattern]) -> tuple[Field[Any], ...]:
    """The fields that a pattern is made from, in order; those that it works out itself are left out."""
    return tuple(f for f in fields(cls) if f.init)


def required(cls: type[Pattern]) -> tuple[str, ...]:
    """The names of the fields that have no default."""
    return tuple(f.name for f in given_fields(cls) if f.default is MISSING and f.default_factory is MISSING)


def _spelled(value: object) -> str:
    """A field's value in text; without the plus of `1e+16`, which joins patterns."""
    return str(value).replace("e+", "e") if isinstance(value, float) else str(value)


def _chunks(n: int, size: int) -> Iterator[Tensor]:
    for start in range(0, n, size):
        yield torch.arange(start, min(start + size, n))
