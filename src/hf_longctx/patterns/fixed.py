"""Fixed attention (Sparse Transformer, arXiv 1904.10509, section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from hf_longctx.patterns.base import Pattern, whole
from hf_longctx.patterns.geometry import Blocks, Columns, Shape


@dataclass(frozen=True)
class Fixed(Pattern, name="fixed"):
    """Each token sees its own block of `stride` tokens, and the last `summary` tokens of every earlier block.

    The paper gives these two to different heads, or merges them in one; this is the merged form.

    Args:
        stride: tokens in a block, at least 1.
        summary: how many tokens at the end of each block all later ones see, at least 1 and at most `stride`.

    >>> Fixed(4, 1).grid(10).splitlines()[-1]
    '. . . # . . . # # #'
    """

    stride: int
    summary: int

    example: ClassVar[str] = "fixed:4,1"

    sees: ClassVar[str] = "same block of stride, or k is one of a block's last summary tokens"
    source: ClassVar[str] = "Sparse Transformer, arXiv 1904.10509"
    used_by: ClassVar[str] = "Sparse Transformer on text"
    typical: ClassVar[str] = "fixed:128,32"

    def __post_init__(self) -> None:
        whole(self, "stride", self.stride)
        whole(self, "summary", self.summary)
        if self.summary > self.stride:
            raise ValueError(
                f"Fixed.summary is {self.summary}: it must be at most the stride, {self.stride}; "
                "use Full() to see every earlier token"
            )

    def allows(self, q: Tensor, k: Tensor, *, layer: int = 0, head: int = 0) -> Tensor:
        """Q // stride == k // stride or k % stride >= stride - summary."""
        return (q // self.stride == k // self.stride) | (k % self.stride >= self.stride - self.summary)

    def count(self, n: int, *, layer: int = 0, head: int = 0) -> int:
        """In closed form: triangles, and `summary` keys more for each block before."""
        blocks, rest = divmod(n, self.stride)
        own = blocks * (self.stride * (self.stride + 1) // 2) + rest * (rest + 1) // 2
        return own + self.summary * (self.stride * (blocks * (blocks - 1) // 2) + rest * blocks)

    def pieces(self, *, layer: int = 0, head: int = 0) -> tuple[Shape, ...]:
        """Blocks and columns."""
        return Blocks(self.stride), Columns(self.stride, self.summary)

    def keeps(self, position: Any, now: Any) -> Any:
        """While its block lasts; for ever, if it is a summary."""
        summary = position % self.stride >= self.stride - self.summary
        return summary | (position // self.stride == now // self.stride)
