"""Takes logits while a text is read, so that perplexity and KL need no reading of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_SLICE = 32
"""Rows of logits compared at a time, in float64."""


@dataclass
class Listener:
    """Takes the logits that predict chosen tokens, while their text is read.

    Args:
        ids: token ids of the text.
        places: positions of the predicted tokens, ascending, none of them 0.
        reference: (places, vocabulary) logits of the stock model for the first of the places, to compare with; None
            for none.
        keep: whether the logits are kept.
    """

    ids: Sequence[int]
    places: Sequence[int]
    reference: torch.Tensor | None = None
    keep: bool = False
    nll: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    same: list[int] = field(default_factory=list)
    kept: torch.Tensor | None = None

    def wanted(self, start: int, count: int) -> list[int]:
        """Which of `count` tokens read from position `start` on have logits that are wanted, counted from `start`."""
        ahead = self.places[len(self.nll) :]
        return [place - 1 - start for place in ahead if start < place <= start + count]

    def hear(self, logits: torch.Tensor) -> None:
        """Take the logits of the next places.

        Args:
            logits: (places, vocabulary), as many as were wanted.
        """
        import torch

        if self.keep:
            if self.kept is None:
                self.kept = torch.empty(len(self.places), logits.shape[1], dtype=logits.dtype)
            self.kept[len(self.nll) : len(self.nll) + len(logits)] = logits
        for rows in logits.split(_SLICE):
            done = len(self.nll)
            now = range(done, done + len(rows))
            targets = torch.tensor([[self.ids[self.places[index]]] for index in now], device=rows.device)
            said = rows.double().log_softmax(-1)
            self.nll += (-said.gather(1, targets)[:, 0]).tolist()
            if self.reference is not None and now.stop <= len(self.reference):
                stock = self.reference[now.start : now.stop].to(rows.device).double().log_softmax(-1)
                self.kl += (stock.exp() * (stock - said)).sum(-1).clamp_min(0).tolist()
                self.same += (stock.argmax(-1) == said.argmax(-1)).int().tolist()
