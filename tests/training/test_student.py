"""What each stage of a distillation lowers: against plain formulas, under padding and packing, in every family."""

from __future__ import annotations

import pytest
import torch

import hf_longctx as lc
from families import build, padding, tokens
from hf_longctx.hf.mixers import as_teacher, mixers, teachers
from hf_longctx.training import student
from hf_longctx.training.packing import IGNORED
from hf_longctx.training.student import Student, compare, relative_scales
from hybrids import HYBRIDS

OBJECTIVES = ("align", "match", "text")


def made(family: str = "llama", objective: str = "match", **how) -> Student:
    model = lc.patch(build(family), mamba="0,2")
    model.requires_grad_(False)
    model.config.use_cache = False  # a cache would be made for the mixers
    one = Student(model, objective, **how)
    one.mixers.requires_grad_(True)
    return one


def packed(batch: int = 2, length: int = 24) -> dict[str, torch.Tensor]:
    """Rows of two documents each, the first token of a document no target."""
    ids, half = tokens(batch, length), length // 2
    labels = ids.clone()
    labels[:, [0, half]] = IGNORED
    return {"input_ids": ids, "position_ids": torch.arange(half).repeat(batch, 2), "labels": labels}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("family", HYBRIDS)
def test_every_mixer_learns_and_nothing_else(family, objective):
    """Packed rows; activations computed again give the same loss and gradients."""
    found = []
    for checkpointing in (False, True):
        one = made(family, objective, checkpointing=checkpointing)
        loss = one(**packed())["loss"]
        loss.backward()
        assert loss > 0
        assert not one.whole.training
        assert all(p.grad is None for n, p in one.whole.named_parameters() if not p.requires_grad)
        assert all(p.grad is None for module in teachers(one.whole).values() for p in module.parameters())
        grads = {name: p.grad for name, p in one.named_parameters()}
        assert all(grad is not None for grad in grads.values())
        assert all(grads[f"mixers.{i}.{name}"].abs().sum() > 0 for i in (0, 2) for name in ("A_log", "q_proj.weight"))
        found.append((loss, grads))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", ["match", "text"])
def test_dropout_stays_off(objective):
    """The teacher has none, and with checkpointing the loss is the same."""
    found = []
    for checkpointing in (False, True):
        one = made(objective=objective, checkpointing=checkpointing)
        for module in one.whole.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.5
        found.append(one(**packed())["loss"].item())
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_kl_is_normalised_by_tokens_and_masked(side, monkeypatch):
    """By hand: each row read alone without its padding, all logits at once, in float64; and in tiles of two rows."""
    one, ids, mask = made(), tokens(3, 20), padding(side, 3, 20)
    kls, nlls, errors = [], [], []
    for row in range(3):
        alone = ids[row : row + 1, mask[row].bool()]
        logits = one.whole(alone).logits
        with as_teacher(one.whole):
            wanted = one.whole(alone).logits
        said, stock = (t[0, :-1].double().log_softmax(-1) for t in (logits, wanted))
        kls.append((stock.exp() * (stock - said)).sum(-1))
        nlls.append(-said.gather(1, alone[0, 1:, None])[:, 0])
        errors.append(alone.shape[1])
    ids[mask == 0] = 7  # whatever stands at padding
    given = {"input_ids": ids, "attention_mask": mask}
    for size in (student.TILE_BYTES, 4 * 2 * 2 * one.whole.config.vocab_size):
        monkeypatch.setattr(student, "TILE_BYTES", size)
        for objective, each in (("match", kls), ("text", nlls)):
            one.objective = objective
            torch.testing.assert_close(one(**given)["loss"].double(), torch.cat(each).mean(), rtol=1e-4, atol=1e-6)
    count = len(torch.cat(kls))
    one.objective = "match"
    part = one(**given, num_items_in_batch=torch.tensor(4 * count))["loss"]
    torch.testing.assert_close(part, one(**given)["loss"] / 4)
    one.objective = "align"
    before = one(**given)["loss"]
    given["input_ids"] = ids.masked_fill(mask == 0, 11)
    torch.testing.assert_close(one(**given)["loss"], before)


@torch.no_grad()
def test_aligning_compares_with_the_attention_on_its_own_input():
    """By hand: the inputs of the teacher's attention, and both modules on them."""
    one, ids, seen = made("qwen3", "align"), tokens(2, 20), {}

    def keep(module, args, kwargs):
        seen[module.layer_idx] = {n: kwargs[n] for n in ("hidden_states", "position_embeddings", "attention_mask")}

    with as_teacher(one.whole) as attention:
        handles = [m.register_forward_pre_hook(keep, with_kwargs=True) for m in attention.values()]
        one.whole(ids)
        for handle in handles:
            handle.remove()
    errors = []
    for index, given in seen.items():
        wanted, own = teachers(one.whole)[index](**given)[0], mixers(one.whole)[index](**given)[0]
        errors.append((wanted - own).square().sum((1, 2)) / wanted.square().sum((1, 2)))
    assert sorted(seen) == [0, 2]
    torch.testing.assert_close(one(ids)["loss"], torch.stack(errors).mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", ["align", "match", "text"])
def test_the_loss_of_a_batch_is_that_of_its_parts(objective):
    """However it is split among micro-batches and processes, and however long its rows are."""
    one, ids = made(objective=objective), tokens(3, 20)
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    targets = 19 + 11 + 19
    with torch.no_grad():
        whole = one(ids, attention_mask=mask)["loss"]
        parts = [one(ids[r], attention_mask=mask[r], num_items_in_batch=targets)["loss"] for r in ([0, 1], [2])]
    torch.testing.assert_close(sum(parts), whole)


def test_scales_are_calibrated_and_learn_in_shares_of_themselves():
    one, ids = made(objective="align"), tokens(2, 24)
    with torch.no_grad():
        for mixer in one.mixers.values():
            mixer.scale.mul_(9)
        before = {name: mixer.scale.clone() for name, mixer in one.mixers.items()}
        far = one(ids)["loss"]
    names = set(one.state_dict())
    with relative_scales(one.mixers.values()):
        one.calibrate({"input_ids": ids})
        near = one(ids)["loss"]
        assert near < min(1, far)  # zero would be an error of 1
        near.backward()
        powers = [mixer.parametrizations.scale.original for mixer in one.mixers.values()]
        assert all(power.grad.abs().sum() > 0 for power in powers)
        inside = [mixer.scale.detach().clone() for mixer in one.mixers.values()]
    assert set(one.state_dict()) == names
    for (name, mixer), scale in zip(one.mixers.items(), inside):
        assert torch.equal(mixer.scale, scale)
        assert isinstance(mixer.scale, torch.nn.Parameter)
        factors = scale / before[name]
        torch.testing.assert_close(factors, factors[:1].expand_as(factors))


@torch.no_grad()
def test_the_teacher_is_the_model_as_it_was_and_leaves_no_trace():
    stock, ids = build("llama"), tokens(2, 20)
    logits = stock(ids).logits
    model = lc.patch(build("llama", use_cache=False), mamba="1")
    own = model(ids).logits
    with as_teacher(model):
        assert torch.equal(model(ids).logits, logits)
        assert not mixers(model)
    assert torch.equal(model(ids).logits, own)
    both = lc.patch(build("llama", use_cache=False), mamba="1", attention="window:6", rope="yarn:2")
    with as_teacher(both):
        under = lc.patch(build("llama"), attention="0,2=window:6", rope="yarn:2")
        torch.testing.assert_close(both(ids).logits, under(ids).logits)
    with pytest.raises(RuntimeError, match="stop"), as_teacher(model):
        raise RuntimeError("stop")
    assert list(mixers(model)) == [1]
    with pytest.raises(ValueError, match="no attention modules behind"), as_teacher(stock):
        pass


def test_comparing_equals_plain_formulas():
    one, rows = made(), [tokens(1, n, seed=n)[0].tolist() for n in (9, 14)]
    kls, nlls, same = [], [], []
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row])
            said = one.whole(ids).logits[0, :-1].double().log_softmax(-1)
            with as_teacher(one.whole):
                stock = one.whole(ids).logits[0, :-1].double().log_softmax(-1)
            kls.append((stock.exp() * (stock - said)).sum(-1))
            nlls.append(torch.stack([-t.gather(1, ids[0, 1:, None])[:, 0] for t in (stock, said)]))
            same.append(stock.argmax(-1) == said.argmax(-1))
    found, means = compare(one, rows), torch.cat(nlls, 1).mean(1).exp()
    assert found["tokens"] == 21
    assert found["kl"] == pytest.approx(float(torch.cat(kls).mean()), rel=1e-3)
    assert (found["stock_perplexity"], found["perplexity"]) == pytest.approx(tuple(means.tolist()), rel=1e-4)
    assert found["same"] == pytest.approx(float(torch.cat(same).double().mean()))
