"""Dilated segments (LongNet, arXiv 2307.02486, section 2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from hf_longctx.patterns.base import Pattern, whole
from hf_longctx.patterns.geometry import Blocks, Segments, Shape
from hf_longctx.patterns.rows import Rows


@dataclass(frozen=True)
class Segment(Pattern, name="segment"):
    """Each token sees every `dilation`-th token before it, counted back from itself, in its own segment.

    In the paper only the tokens of one residue class take part in a head's sparse segment, and the class differs from
    head to head; a token outside of it gets nothing from that head. Here each token sees its own class in every head:
    the classes of all the paper's heads together, so that no row is blind and the pattern does not depend on the head.

    Args:
        size: tokens in a segment, at least 1.
        dilation: distance between visible tokens, at least 1 (1 is `Block(size)`).

    >>> Segment(6, 2).grid(12).splitlines()[-1]
    '. . . . . . . # . # . #'
    """

    size: int
    dilation: int

    example: ClassVar[str] = "segment:8,2"

    sees: ClassVar[str] = "same segment and d % dilation = 0"
    source: ClassVar[str] = "LongNet, arXiv 2307.02486"
    used_by: ClassVar[str] = "LongNet, five of them joined"
    typical: ClassVar[str] = "segment:4096,2"

    def __post_init__(self) -> None:
        whole(self, "size", self.size)
        whole(self, "dilation", self.dilation)

    def allows(self, q: Tensor, k: Tensor, *, layer: int = 0, head: int = 0) -> Tensor:
        """Q // size == k // size and (q - k) % dilation == 0."""
        return (q // self.size == k // self.size) & ((q - k) % self.dilation == 0)

    def rows(self, q: Tensor, *, layer: int = 0, head: int = 0) -> Rows:
        """One comb ending at the row itself, as long as the segment so far."""
        return Rows(q, steps=((self.dilation, q % self.size // self.dilation + 1),))

    def pieces(self, *, layer: int = 0, head: int = 0) -> tuple[Shape, ...]:
        """Segments, or plain blocks."""
        return (Segments(self.size, self.dilation) if self.dilation > 1 else Blocks(self.size),)

    def earliest(self, q: Tensor) -> Tensor:
        """The segment's start: at most `dilation` - 1 tokens before the first visible key."""
        return q // self.size * self.size

    def reach(self, layers: int = 1) -> float:
        """From a segment's end to the first token of the same residue class, through however many layers."""
        return (self.size - 1) // self.dilation * self.dilation if layers else 0

    @property
    def period(self) -> int:
        """A segment."""
        return self.size

    def keeps(self, position: Any, now: Any) -> Any:
        """While its next reader is in its segment."""
        reader = position - (position - now) // self.dilation * self.dilation
        return reader // self.size == position // self.size
