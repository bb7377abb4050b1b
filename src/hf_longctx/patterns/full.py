"""Ordinary causal attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_longctx.patterns.base import Pattern
from hf_longctx.patterns.geometry import Shape, Strip
from hf_longctx.patterns.rows import Rows


@dataclass(frozen=True)
class Full(Pattern, name="full"):
    """Every token sees every earlier token and itself.

    >>> Full().count(100)
    5050
    """

    sees: ClassVar[str] = "always"
    source: ClassVar[str] = "Vaswani et al. 2017, arXiv 1706.03762"
    used_by: ClassVar[str] = "Llama, Qwen2"
    typical: ClassVar[str] = "full"

    def allows(self, q: Tensor, k: Tensor, *, layer: int = 0, head: int = 0) -> Tensor:
        """Always."""
        return torch.ones(torch.broadcast_shapes(q.shape, k.shape), dtype=torch.bool, device=q.device)

    def rows(self, q: Tensor, *, layer: int = 0, head: int = 0) -> Rows:
        """One span from the start."""
        return Rows(q, ((torch.zeros_like(q), q + 1),))

    def pieces(self, *, layer: int = 0, head: int = 0) -> tuple[Shape, ...]:
        """All distances."""
        return (Strip(),)

    def within(self, window: int) -> Pattern:
        """A plain sliding window."""
        from hf_longctx.patterns.sliding_window import SlidingWindow

        return SlidingWindow(window)

    def keeps(self, position: Any, now: Any) -> Any:
        """Always: nothing may ever be dropped."""
        return position >= 0
