"""The language model's loss without ever holding all logits: the head runs on a few rows at a time.

At 64K tokens of a vocabulary of 152K, float32 logits are 40 GB, and their gradient as much again. Here the decoder
runs once, and the model's own head (with whatever it does to its logits) runs on one tile of rows after the other,
forgets its logits, and makes them again in the backward pass. Both the projection and the cross entropy are inside the
recomputed part: recomputing the cross entropy alone would keep every tile's logits alive.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .packing import IGNORED

#: Float32 logits that a tile may take, in bytes.
TILE_BYTES = 1 << 27
_TILED = "_longctx_tiled"


def tile_loss(model: Any, *, rows: int | None = None) -> None:
    """Make a causal language model compute its loss in tiles; `untile_loss` undoes it.

    From then on a call with `labels` gives the loss, and None for the logits. A call without is as before.

    Args:
        model: a transformers causal language model, the base one where it is wrapped.
        rows: rows of a tile; the default gives a tile 128 MiB of float32 logits.

    Raises:
        ValueError: a model without a decoder of its own under its head, or one tiled already, or one whose loss has
            another part.
    """
    _decoder_name(model)
    if getattr(model.config, "output_router_logits", False):
        raise ValueError(
            f"{type(model).__name__} adds a loss of its experts' router, which a loss in tiles has not: set "
            "model.config.output_router_logits = False, or train it with tile=False"
        )
    if _TILED in vars(model):
        raise ValueError(f"the loss of {type(model).__name__} is tiled already: call untile_loss(model) first")
    setattr(model, _TILED, rows or tile_rows(model.get_output_embeddings().weight.shape[0]))
    model.forward = partial(_forward, model)


def tile_rows(words: int) -> int:
    """Rows of a tile for a vocabulary of `words`.

    >>> tile_rows(128256)
    261
    """
    return max(1, TILE_BYTES // (4 * words))


def untile_loss(model: Any) -> None:
    """Give a model its own loss back."""
    if vars(model).pop(_TILED, None) is not None:
        del model.forward


def _forward(model: Any, *args: Any, **kwargs: Any) -> Any:
    """The model's forward; where labels are given, with the loss in tiles."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    forward = type(model).forward
    labels, shifted = kwargs.pop("labels", None), kwargs.pop("shift_labels", None)
    if labels is None and shifted is None:
        return forward(model, *args, **kwargs)
    count = kwargs.pop("num_items_in_batch", None)
    for name in ("logits_to_keep", "return_dict"):
        kwargs.pop(name, None)
    hidden = model.get_decoder()(*args, **kwargs).last_hidden_state
    if shifted is None:
        shifted = nn.functional.pad(labels[..., 1:], (0, 1), value=IGNORED)
    targets = shifted.to(hidden.device)
    total = summed_loss(model, hidden, targets)
    if count is None:
        count = targets.ne(IGNORED).sum()
    return CausalLMOutputWithPast(loss=total / count)


def summed_loss(model: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of a head over hidden states, summed.

    Args:
        model: a causal language model whose loss is tiled.
        hidden: (B, L, H), the decoder's output.
        targets: (B, L) ids to be predicted there, `IGNORED` where nothing is.

    Returns:
        A float32 scalar, differentiable.
    """
    rows = vars(model)[_TILED]
    flat, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for start in range(0, len(targets), rows):
        tile = slice(start, start + rows)
        if torch.is_grad_enabled():
            total = total + checkpoint(_tile, model, flat[tile], targets[tile], use_reentrant=False)
        else:
            total = total + _tile(model, flat[tile], targets[tile])
    return total


def _tile(model: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    logits = head(model, hidden[None])[0].float()
    return nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")


def head(model: Any, hidden: Tensor) -> Tensor:
    """Logits (B, L, V) of hidden states (B, L, H), by the model's own forward: scaling and caps included."""
    with _decoded(model, hidden):
        return type(model).forward(model, inputs_embeds=hidden, use_cache=False).logits


class _Decoded(nn.Module):
    """Stands in for a decoder whose output is known."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        from transformers.modeling_outputs import MoeModelOutputWithPast

        return MoeModelOutputWithPast(last_hidden_state=self.hidden)  # models without experts read a part of it


@contextmanager
def _decoded(model: Any, hidden: Tensor) -> Iterator[None]:
    name = _decoder_name(model)
    decoder = model._modules[name]
    model._modules[name] = _Decoded(hidden)
    try:
        yield
    finally:
        model._modules[name] = decoder


def _decoder_name(model: Any) -> str:
    """The attribute in which a model has its decoder."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    for name, module in getattr(model, "_modules", {}).items():
        if module is decoder and model.get_output_embeddings() is not None:
            return name
    raise ValueError(
        f"{type(model).__name__} has no decoder of its own under its head, so its loss cannot be computed in tiles: "
        "train it with tile=False, which holds all logits"
    )
