"""What a model makes of text that it was not trained on: loss by position, read once in chunks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_longctx.hf.cache_argument import cache_name, cache_of
from hf_longctx.hf.lengths import held_length

from .tiled_loss import head

#: Rows read at a time, and rows of logits held at a time.
CHUNK, ROWS = 1024, 256


def position_bins(trained: int, target: int) -> list[tuple[int, int]]:
    """Stretches of positions to report: halves of the trained window, then doublings to the target.

    >>> position_bins(64, 200)
    [(0, 32), (32, 64), (64, 128), (128, 200)]
    """
    edges = [0, trained // 2, trained]
    while edges[-1] * 2 < target:
        edges.append(edges[-1] * 2)
    if target > edges[-1]:
        edges.append(target)
    return list(zip(edges, edges[1:]))


@torch.no_grad()
def token_losses(model: Any, ids: Sequence[int]) -> Tensor:
    """The loss of every token but the first, in one reading.

    Args:
        model: a causal language model, the base one where it is wrapped.
        ids: token ids.

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
    try:
        with held_length(model, length):
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
    finally:
        model.train(was_training)
    return torch.cat(losses)


def by_position(model: Any, ids: Sequence[int], bins: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Perplexity over stretches of positions.

    Args:
        model: a causal language model.
        ids: token ids; stretches past their end are left out, one cut short says so by its tokens.
        bins: (start, stop) positions of predicted tokens.

    Returns:
        `{"start", "stop", "tokens", "loss", "perplexity"}` a stretch.
    """
    losses = token_losses(model, ids[: bins[-1][1]])
    rows = []
    for start, stop in bins:
        part = losses[max(start - 1, 0) : stop - 1].double()
        if len(part):
            loss = float(part.mean())
            perplexity = math.exp(min(loss, 700.0))
            rows.append({"start": start, "stop": stop, "tokens": len(part), "loss": loss, "perplexity": perplexity})
    return rows
