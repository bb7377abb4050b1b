"""A dilated window: every r-th token, further back (Longformer, arXiv 2004.05150, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from hf_longctx.patterns.base import Pattern, whole
from hf_longctx.patterns.geometry import Shape, Spaced, Strip
from hf_longctx.patterns.rows import Rows


@dataclass(frozen=True)
class Dilated(Pattern, name="dilated"):
    """Each token sees `window` keys spaced `dilation` apart, itself first.

    Args:
        window: number of visible keys, at least 1.
        dilation: distance between them in tokens, at least 1 (1 is a plain window).

    >>> Dilated(512, 4).reach(1)
    2044
    """

    window: int
    dilation: int

    sees: ClassVar[str] = "d % dilation = 0 and d < window x dilation"
    source: ClassVar[str] = "Longformer, arXiv 2004.05150"
    used_by: ClassVar[str] = "Longformer's upper layers"
    typical: ClassVar[str] = "dilated:512,4"

    def __post_init__(self) -> None:
        whole(self, "window", self.window)
        whole(self, "dilation", self.dilation)

    def allows(self, q: Tensor, k: Tensor, *, layer: int = 0, head: int = 0) -> Tensor:
        """(q - k) % dilation == 0 and q - k < window * dilation."""
        d = q - k
        return (d % self.dilation == 0) & (d < self.window * self.dilation)

    def rows(self, q: Tensor, *, layer: int = 0, head: int = 0) -> Rows:
        """One comb ending at the row itself."""
        return Rows(q, steps=((self.dilation, self.window),))

    def pieces(self, *, layer: int = 0, head: int = 0) -> tuple[Shape, ...]:
        """A window on each residue class."""
        return (Spaced(Strip(high=self.window), self.dilation),)

    def earliest(self, q: Tensor) -> Tensor:
        """The last tooth of the comb."""
        return q - (self.window - 1) * self.dilation

    def keeps(self, position: Any, now: Any) -> Any:
        """Until its last possible reader has passed."""
        return now - position <= (self.window - 1) * self.dilation

    def within(self, window: int) -> Pattern:
        """Fewer teeth."""
        return Dilated(min(self.window, -(-window // self.dilation)), self.dilation)
