"""A sliding window over the most recent tokens (Mistral 7B, arXiv 2310.06825, section 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from hf_longctx.patterns.base import Pattern, whole
from hf_longctx.patterns.geometry import Shape, Strip
from hf_longctx.patterns.rows import Rows


@dataclass(frozen=True)
class SlidingWindow(Pattern, name="window"):
    """Each token sees the last `window` tokens, itself included: transformers' meaning of a window.

    Args:
        window: number of visible keys, at least 1.

    >>> str(SlidingWindow(1024)), SlidingWindow(1024).reach(2)
    ('window:1024', 2046)
    """

    window: int

    sees: ClassVar[str] = "d < window"
    source: ClassVar[str] = "Mistral 7B, arXiv 2310.06825"
    used_by: ClassVar[str] = "Mistral 7B v0.1 (4096), Gemma 2 and 3, gpt-oss (128), Cohere 2, Olmo 3"
    typical: ClassVar[str] = "window:1024"

    def __post_init__(self) -> None:
        whole(self, "window", self.window)

    def allows(self, q: Tensor, k: Tensor, *, layer: int = 0, head: int = 0) -> Tensor:
        """Q - k < window."""
        return q - k < self.window

    def rows(self, q: Tensor, *, layer: int = 0, head: int = 0) -> Rows:
        """One span ending at the row itself."""
        return Rows(q, ((q - self.window + 1, q + 1),))

    def pieces(self, *, layer: int = 0, head: int = 0) -> tuple[Shape, ...]:
        """A band."""
        return (Strip(high=self.window),)

    def earliest(self, q: Tensor) -> Tensor:
        """Window - 1 tokens back."""
        return q - (self.window - 1)

    def keeps(self, position: Any, now: Any) -> Any:
        """While it is among the last `window` keys."""
        return now - position < self.window

    def within(self, window: int) -> Pattern:
        """The narrower of the two."""
        return SlidingWindow(min(self.window, window))
