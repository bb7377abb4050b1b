"""What a model makes of text that it was not trained on: loss by position, and how far it is from the base model."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from hf_longctx.hf.cache_argument import cache_name, cache_of
from hf_longctx.hf.lengths import held_length
from hf_longctx.measure.damage import MEMORY, TOKENS, divergence
from hf_longctx.measure.listener import Listener

from .tiled_loss import head

#: Rows read at a time, and rows of logits held at a time.
CHUNK, ROWS = 1024, 256

Row = dict[str, Any]


def position_bins(readable: int, target: int) -> list[tuple[int, int]]:
    """Stretches of positions to report: two quarters and a half of the old window, then halves of each doubling.

    >>> position_bins(64, 200)
    [(0, 16), (16, 32), (32, 64), (64, 96), (96, 128), (128, 192), (192, 200)]
    """
    edges = [edge for edge in (readable // 4, readable // 2, readable) if 0 < edge < target]
    reach = readable
    while reach < target:
        edges += [edge for edge in (reach + reach // 2, 2 * reach) if reach < edge < target]
        reach *= 2
    edges.append(target)
    return list(zip([0, *edges], edges))


@torch.no_grad()
def token_losses(
    model: Any, ids: Sequence[int], listener: Listener | None = None, *, progress: bool = False
) -> Tensor:
    """The loss of every token but the first, in one reading.

    Args:
        model: a causal language model, the base one where it is wrapped.
        ids: token ids.
        listener: takes the logits of chosen tokens on the way.
        progress: whether a terminal shows a bar meanwhile.

    Returns:
        (len(ids) - 1,) float32 on the CPU: -log p of token i + 1 given those before it, in nats.

    Raises:
        ValueError: fewer than two ids, of which none follows another.
    """
    if len(ids) < 2:
        raise ValueError(f"ids has {len(ids)} tokens: a loss needs at least 2, one that follows another")
    tokens = torch.tensor([list(ids)], device=model.device)
    length = tokens.shape[1]
    was_training, losses, cache = model.training, [], None
    model.eval()
    bar = tqdm(
        total=length,
        desc="held-out text",
        unit="tok",
        unit_scale=True,
        leave=False,
        disable=None if progress else True,
    )
    try:
        with held_length(model, length), bar:
            for start in range(0, length, CHUNK):
                piece = tokens[:, start : start + CHUNK]
                places = torch.arange(start, start + piece.shape[1], device=model.device)[None]
                out = model.get_decoder()(
                    input_ids=piece, position_ids=places, use_cache=True, **{cache_name(): cache}
                )
                cache, hidden = cache_of(out), out.last_hidden_state
                targets = tokens[0, start + 1 : start + 1 + piece.shape[1]]
                for row in range(0, len(targets), ROWS):
                    wanted = targets[row : row + ROWS]
                    logits = head(model, hidden[:, row : row + len(wanted)])[0].float()
                    losses.append(nn.functional.cross_entropy(logits, wanted, reduction="none").cpu())
                    if listener is not None and (heard := listener.wanted(start + row, len(wanted))):
                        listener.hear(logits[heard])
                bar.update(piece.shape[1])
    finally:
        model.train(was_training)
    return torch.cat(losses)


@dataclass
class HeldOut:
    """Held-out text, read by the base model first and by what becomes of it afterwards.

    Attributes:
        ids: token ids.
        readable: tokens that the base model is for; within them it is compared with.
        window: tokens that the text is read to.
        seed: of the tokens whose logits are compared.
        progress: whether a terminal shows a bar meanwhile.
    """

    ids: Sequence[int]
    readable: int
    window: int
    seed: int = 0
    progress: bool = False
    _base: Tensor | None = field(default=None, repr=False)

    def read_base(self, model: Any, known: Sequence[Row] | None = None) -> list[Row]:
        """Perplexity by position of the base model, whose logits are kept to compare with.

        Args:
            model: the base model.
            known: what an earlier call returned, in a run that goes on: only the logits are read again.

        Returns:
            As `read`.
        """
        heard = Listener(self.ids, self._places(model), keep=True)
        if known is None:
            rows = by_position(model, self.ids, self._bins(), heard, progress=self.progress)
        else:
            rows = list(known)
            token_losses(model, self.ids[: self.readable], heard, progress=self.progress)
        self._base = heard.kept
        return rows

    def read(self, model: Any, base: Sequence[Row]) -> list[Row]:
        """Perplexity by position, and the divergence from the base model where that one could read.

        Args:
            model: what became of the base model.
            base: what `read_base` returned.

        Returns:
            Rows of `by_position`, with `ratio` (perplexity over the base model's), and `kl`, `kl_low`, `kl_high` (mean
            of KL(base || model) in nats a token and its 95% interval) and `same` (share of tokens whose likeliest
            prediction is the base model's) over `compared` tokens, None where nothing was compared.
        """
        places = self._places(model)
        heard = Listener(self.ids, places, reference=self._base)
        rows = by_position(model, self.ids, self._bins(), heard, progress=self.progress)
        for row, before in zip(rows, base):
            inside = [i for i, place in enumerate(places[: len(heard.kl)]) if row["start"] <= place < row["stop"]]
            kl = [heard.kl[i] if math.isfinite(heard.kl[i]) else None for i in inside]
            row["ratio"] = math.exp(min(row["loss"] - before["loss"], 700.0))
            row |= divergence(kl or None, [heard.same[i] for i in inside])
            row["compared"] = len(inside)
        return rows

    def _bins(self) -> list[tuple[int, int]]:
        return position_bins(self.readable, self.window)

    def _places(self, model: Any) -> list[int]:
        """Positions of the tokens that are compared: seeded, as many in each stretch of the old window."""
        within = [(start, min(stop, len(self.ids))) for start, stop in self._bins() if stop <= self.readable]
        spans = [range(max(start, 1), stop) for start, stop in within if stop > max(start, 1)]
        words = model.config.get_text_config(decoder=True).vocab_size
        most = max(1, min(TOKENS, MEMORY // (4 * words * max(1, len(spans)))))
        rng = random.Random(f"{self.seed}/held out")
        return [place for span in spans for place in sorted(rng.sample(span, min(most, len(span))))]


def by_position(
    model: Any,
    ids: Sequence[int],
    bins: Sequence[tuple[int, int]],
    listener: Listener | None = None,
    *,
    progress: bool = False,
) -> list[Row]:
    """Perplexity over stretches of positions.

    Args:
        model: a causal language model.
        ids: token ids; stretches past their end are left out, one cut short says so by its tokens.
        bins: (start, stop) positions of predicted tokens.
        listener: takes the logits of chosen tokens on the way.
        progress: whether a terminal shows a bar meanwhile.

    Returns:
        `{"start", "stop", "tokens", "loss", "perplexity"}` a stretch.
    """
    losses = token_losses(model, ids[: bins[-1][1]], listener, progress=progress)
    rows = []
    for start, stop in bins:
        part = losses[max(start - 1, 0) : stop - 1].double()
        if len(part):
            loss = float(part.mean())
            perplexity = math.exp(min(loss, 700.0))
            rows.append({"start": start, "stop": stop, "tokens": len(part), "loss": loss, "perplexity": perplexity})
    return rows
