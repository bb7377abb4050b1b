"""Global tokens: the first tokens stay visible to all (Longformer, arXiv 2004.05150; sinks, arXiv 2309.17453)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_longctx.patterns.base import Pattern, whole
from hf_longctx.patterns.geometry import Shape, Strip
from hf_longctx.patterns.rows import Rows


@dataclass(frozen=True)
class Global(Pattern, name="global"):
    """Every token sees the first `tokens` tokens of its document, and nothing else.

    Alone it leaves later tokens blind to their neighbours; it is made to be joined: `SlidingWindow(1024) | Global(4)`.

    Args:
        tokens: how many tokens at the start stay visible, at least 1.

    >>> Global(4).count(10)
    34
    """

    tokens: int

    sees: ClassVar[str] = "k < tokens"
    source: ClassVar[str] = "Longformer, arXiv 2004.05150; StreamingLLM, arXiv 2309.17453"
    used_by: ClassVar[str] = "StreamingLLM (4 sinks), Longformer, joined to a window"
    typical: ClassVar[str] = "global:4"

    def __post_init__(self) -> None:
        whole(self, "tokens", self.tokens)

    def allows(self, q: Tensor, k: Tensor, *, layer: int = 0, head: int = 0) -> Tensor:
        """K < tokens."""
        return (k < self.tokens).expand(torch.broadcast_shapes(q.shape, k.shape))

    def rows(self, q: Tensor, *, layer: int = 0, head: int = 0) -> Rows:
        """One span at the start."""
        return Rows(q, ((torch.zeros_like(q), torch.full_like(q, self.tokens)),))

    def pieces(self, *, layer: int = 0, head: int = 0) -> tuple[Shape, ...]:
        """The first columns."""
        return (Strip(stop=self.tokens),)

    def earliest(self, q: Tensor) -> Tensor:
        """The row itself: sinks carry nothing over a distance."""
        return q

    def keeps(self, position: Any, now: Any) -> Any:
        """For ever, if it is one of the first."""
        return position < self.tokens
