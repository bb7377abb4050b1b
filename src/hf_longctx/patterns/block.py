"""Block-local attention (Llama 4's chunked layers; LongLoRA's groups, arXiv 2309.12307, without the shift)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from hf_longctx.patterns.base import Pattern, whole
from hf_longctx.patterns.geometry import Blocks, Shape
from hf_longctx.patterns.rows import Rows


@dataclass(frozen=True)
class Block(Pattern, name="block"):
    """Each token sees its own block of `size` tokens, and the `previous` blocks before it.

    Args:
        size: tokens in a block, at least 1.
        previous: how many earlier blocks stay visible, at least 0.

    >>> Block(256).reach(12), Block(256, previous=1).reach(12)
    (255, 3327)
    """

    size: int
    previous: int = 0

    sees: ClassVar[str] = "q // size - k // size <= previous"
    source: ClassVar[str] = "LongLoRA, arXiv 2309.12307 (without its shift); Llama 4's chunks"
    used_by: ClassVar[str] = "Llama 4 (8192, 3 of 4 layers), LongLoRA in training"
    typical: ClassVar[str] = "block:256,1"

    def __post_init__(self) -> None:
        whole(self, "size", self.size)
        whole(self, "previous", self.previous, least=0)

    def allows(self, q: Tensor, k: Tensor, *, layer: int = 0, head: int = 0) -> Tensor:
        """Q // size - k // size <= previous."""
        return q // self.size - k // self.size <= self.previous

    def rows(self, q: Tensor, *, layer: int = 0, head: int = 0) -> Rows:
        """One span from the first visible block's start."""
        return Rows(q, ((self.earliest(q), q + 1),))

    def pieces(self, *, layer: int = 0, head: int = 0) -> tuple[Shape, ...]:
        """Blocks."""
        return (Blocks(self.size, self.previous),)

    def earliest(self, q: Tensor) -> Tensor:
        """The first token of the first visible block."""
        return (q // self.size - self.previous) * self.size

    @property
    def period(self) -> int:
        """A block."""
        return self.size

    def keeps(self, position: Any, now: Any) -> Any:
        """While its block is visible."""
        return now // self.size - position // self.size <= self.previous
