"""The loss in tiles: the same loss and gradients as the model's own, and never all logits at once."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from families import FAMILIES, VOCAB, build, tokens
from hf_longctx.training.tiled_loss import head, tile_loss, untile_loss


def labels_of(ids: torch.Tensor) -> torch.Tensor:
    labels = ids.clone()
    labels[:, ::5] = -100
    return labels


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_loss_and_gradients_are_the_models_own(family, rows):
    plain = build(family)
    tiled = copy.deepcopy(plain)
    tile_loss(tiled, rows=rows)
    ids = tokens(2, 20)
    for extra in ({}, {"num_items_in_batch": torch.tensor(11)}):
        expected, found = (m(ids, labels=labels_of(ids), **extra).loss for m in (plain, tiled))
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    expected.backward()
    found.backward()
    for (name, p), q in zip(plain.named_parameters(), tiled.parameters()):
        torch.testing.assert_close(q.grad, p.grad, atol=1e-6, rtol=1e-5, msg=name)


def test_what_a_model_does_to_its_logits_is_done():
    """A cap on the logits is part of the head: a tile that only multiplied by the weights would miss it."""
    plain = build("gemma3", final_logit_softcapping=0.5)
    ids = tokens(2, 20)
    expected = plain(ids, labels=ids).loss
    assert (plain(ids).logits.abs().max() <= 0.5).item()
    tile_loss(plain, rows=7)
    torch.testing.assert_close(plain(ids, labels=ids).loss, expected, atol=1e-6, rtol=1e-6)


def test_labels_are_shifted_once():
    """Against the definition: the mean of -log p(next token)."""
    model, ids = build("llama"), tokens(1, 12)
    with torch.no_grad():
        probability = model(ids).logits[0, :-1].log_softmax(-1)
        expected = -probability[torch.arange(11), ids[0, 1:]].mean()
        tile_loss(model, rows=5)
        torch.testing.assert_close(model(ids, labels=ids).loss, expected)
        shifted = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
        torch.testing.assert_close(model(ids, shift_labels=shifted).loss, expected)


def test_without_labels_nothing_changes_and_it_can_be_undone():
    model, ids = build("llama"), tokens(1, 12)
    expected = model(ids).logits
    tile_loss(model)
    assert torch.equal(model(ids).logits, expected)
    with pytest.raises(ValueError, match="tiled already"):
        tile_loss(model)
    untile_loss(model)
    assert "forward" not in vars(model)
    assert model(ids, labels=ids).logits is not None


class Widest(TorchDispatchMode):
    """The most rows of logits that any operator gave."""

    rows = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple) else [result]:
            if isinstance(x, torch.Tensor) and x.dim() and x.shape[-1] == VOCAB:
                self.rows = max(self.rows, x.numel() // VOCAB)
        return result


@pytest.mark.parametrize("tiled", [True, False])
def test_never_all_logits(tiled):
    model, ids = build("llama", tie_word_embeddings=False), tokens(1, 300)
    if tiled:
        tile_loss(model, rows=8)
    with Widest() as widest:
        model(ids, labels=ids).loss.backward()
    hidden = model.config.hidden_size  # the head's gradient has as many rows
    assert widest.rows == (max(8, hidden) if tiled else 300)


def test_the_head_alone():
    model, ids = build("gpt_neox"), tokens(2, 9)
    with torch.no_grad():
        hidden = model.get_decoder()(ids).last_hidden_state
        assert torch.equal(head(model, hidden), model(ids).logits)


def test_a_loss_with_another_part_is_refused():
    with pytest.raises(ValueError, match="loss of its experts' router.*tile=False"):
        tile_loss(build("gpt_oss", output_router_logits=True))
