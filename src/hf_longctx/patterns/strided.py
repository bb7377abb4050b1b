"""Strided attention (Sparse Transformer, arXiv 1904.10509, section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hf_longctx.patterns.base import Pattern, whole
from hf_longctx.patterns.geometry import Shape, Spaced, Strip
from hf_longctx.patterns.rows import Rows


@dataclass(frozen=True)
class Strided(Pattern, name="strided"):
    """Each token sees the last `local` tokens and every `stride`-th one before, counted back from itself.

    Every key has a reader `stride` later, for ever, so a cache can drop nothing.

    Args:
        local: number of recent visible keys, at least 1.
        stride: distance between the others, at least 1.

    >>> Strided(2, 3).grid(5).splitlines()[-1]
    '. # . # #'
    """

    local: int
    stride: int

    sees: ClassVar[str] = "d < local or d % stride = 0"
    source: ClassVar[str] = "Sparse Transformer, arXiv 1904.10509"
    used_by: ClassVar[str] = "Sparse Transformer, Jukebox"
    typical: ClassVar[str] = "strided:128,128"

    def __post_init__(self) -> None:
        whole(self, "local", self.local)
        whole(self, "stride", self.stride)

    def allows(self, q: Tensor, k: Tensor, *, layer: int = 0, head: int = 0) -> Tensor:
        """Q - k < local or (q - k) % stride == 0."""
        d = q - k
        return (d < self.local) | (d % self.stride == 0)

    def rows(self, q: Tensor, *, layer: int = 0, head: int = 0) -> Rows:
        """A span ending at the row and a comb down to the start."""
        return Rows(q, ((q - self.local + 1, q + 1),), ((self.stride, None),))

    def pieces(self, *, layer: int = 0, head: int = 0) -> tuple[Shape, ...]:
        """A window, and causal attention on each residue class."""
        return Strip(high=self.local), Spaced(Strip(), self.stride)

    def within(self, window: int) -> Pattern:
        """A narrower window and a shorter comb."""
        from hf_longctx.patterns.dilated import Dilated
        from hf_longctx.patterns.sliding_window import SlidingWindow

        return SlidingWindow(min(self.local, window)) | Dilated(-(-window // self.stride), self.stride)
