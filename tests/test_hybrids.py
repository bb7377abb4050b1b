"""Models with Mamba-2 layers: the start, every way of running them, caches, and undoing."""

from __future__ import annotations

import copy
import logging
import pickle
import sys
from dataclasses import replace

import pytest
import torch

import hf_longctx as lc
from contract import CASES, run
from families import FAMILIES, build, padding, tokens
from fingerprint import fingerprint
from hf_longctx.hf import patching
from hf_longctx.hf.mixers import mixers, teachers
from hf_longctx.mamba import INITS, Mamba2
from hf_longctx.mamba.convert import memories
from hybrids import GREEDY, HYBRIDS, PLANS, hybrid
from pairs import pairwise


@pytest.mark.parametrize("family", HYBRIDS)
@pytest.mark.parametrize("layers", ["1", "0,2"])
def test_the_start_equals_the_dense_formula(family, layers, monkeypatch):
    """transformers' own attention module, its weighted sum alone replaced by decayed linear attention."""
    plan = Mamba2(layers, memory=64)
    chosen = {int(i) for i in layers.split(",")}
    teacher = build(family, attention="eager").double()
    code = sys.modules[type(teacher.model.layers[0].self_attn).__module__]
    softmax = code.eager_attention_forward

    def linear(module, query, key, value, mask, *args, **kwargs):
        if module.layer_idx not in chosen:
            return softmax(module, query, key, value, mask, *args, **kwargs)
        each, length = query.shape[1] // key.shape[1], query.shape[2]
        key, value = (t.repeat_interleave(each, 1) for t in (key, value))
        distance = (torch.arange(length)[:, None] - torch.arange(length)).double()
        rate = 1 / memories(2, 64).repeat_interleave(each)[:, None, None]
        decay = (1 - torch.exp(-rate)) * torch.exp(-distance * rate).tril()
        return (query @ key.transpose(2, 3) * kwargs["scaling"] * decay @ value).transpose(1, 2), None

    ids = tokens(2, 50)
    with torch.no_grad():
        monkeypatch.setattr(code, "eager_attention_forward", linear)
        expected = teacher(ids).logits
        monkeypatch.undo()
        stock = teacher(ids).logits
        logits = lc.patch(teacher, mamba=plan)(ids).logits
        low = lc.patch(build(family), mamba=plan)(ids).logits
    assert (logits - expected).abs().max() < 1e-5
    assert (low - expected).abs().max() < 1e-4
    assert (stock - expected).abs().max() > 0.1


@pytest.mark.parametrize(("family", "plan", "case"), pairwise(HYBRIDS, PLANS, CASES))
@torch.no_grad()
def test_however_it_is_run(family, plan, case):
    """Padding, chunks, static caches and packing give what each row gives alone, read at once."""
    of = CASES[case]
    if of.holes and any(layer.own_window for layer in lc.describe(build(family)).layers):
        # Stock windows count holes inside a row as tokens; patterns do not.
        of, plan = (replace(of, side="left"), plan) if of.steps else (of, "all")
    model = hybrid(family, plan)
    ids, mask = of.tensors()
    logits = run(model, of)
    for row in range(of.batch):
        real = mask[row].bool()
        parts = ids[row : row + 1, real].split(of.documents or int(real.sum()), dim=1)
        alone = torch.cat([model(part, use_cache=False).logits for part in parts], 1)
        torch.testing.assert_close(logits[row : row + 1, real], alone, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("plan", PLANS)
@torch.no_grad()
def test_one_row_of_position_ids_packs_every_row(plan):
    model, ids = hybrid("llama", plan), tokens(2, 20)
    restarts = torch.cat([torch.arange(n) for n in (9, 11)])[None]
    alone = torch.cat([model(part, use_cache=False).logits for part in ids.split([9, 11], 1)], 1)
    packed = model(ids, position_ids=restarts, use_cache=False).logits
    torch.testing.assert_close(packed, alone, atol=5e-5, rtol=1e-4)


@torch.no_grad()
def test_a_mask_given_by_place_is_seen():
    model, ids, mask = hybrid(), tokens(2, 20), padding("left", 2, 20)
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    named = model.model(ids, attention_mask=mask, position_ids=places).last_hidden_state
    assert torch.equal(model.model(ids, mask, places).last_hidden_state, named)
    assert not torch.equal(model.model(ids).last_hidden_state[1, -1], named[1, -1])


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", HYBRIDS)
@torch.no_grad()
def test_generates_with_the_cache_what_it_does_without(family, plan):
    model, ids, mask = hybrid(family, plan), tokens(3, 20), padding("left", 3, 20)
    for settings in (GREEDY | {"num_beams": 3, "num_return_sequences": 2}, GREEDY):
        out = model.generate(ids, attention_mask=mask, **settings)
        assert torch.equal(out, model.generate(ids, attention_mask=mask, use_cache=False, **settings))
    assert torch.equal(out[2:, 10:], model.generate(ids[2:, 10:], **GREEDY))


# ------------------------------------------------------------------ undoing and plans


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", HYBRIDS)
def test_unpatch_restores_everything(family, plan):
    model, ids = build(family), tokens(2, 30)
    with torch.no_grad():
        before, logits = fingerprint(model), model(ids).logits
        assert lc.patch(model, **PLANS[plan]) is model
        assert isinstance(model, FAMILIES[family][1])
        model.generate(ids, max_new_tokens=2, do_sample=False)
        for mixer in mixers(model).values():  # training them leaves the attention behind them alone
            for parameter in mixer.parameters():
                parameter.add_(1)
        assert lc.unpatch(model) is model
        after = fingerprint(model)
        for what, value in before.items():
            assert after[what] == value, what
        assert torch.equal(model(ids).logits, logits)


def test_what_cannot_be_done_changes_nothing():
    neox = build("gpt_neox")
    before = fingerprint(neox)
    with pytest.raises(ValueError, match=r"GPTNeoXAttention, which cannot be converted.*Llama, Mistral"):
        lc.patch(neox, mamba="1")
    assert fingerprint(neox) == before
    model = hybrid()
    before = fingerprint(model)
    with pytest.raises(ValueError, match="already patched"):
        lc.patch(model, mamba="0")
    with pytest.raises(ValueError, match="nothing besides its Mamba layers"):
        lc.unpatch(model, mamba=False)
    assert fingerprint(model) == before
    ids = tokens(2, 10)
    with pytest.raises(ValueError, match=r"Mamba layers and was given a mask of shape \(2, 1, 10, 10\)"):
        model(ids, attention_mask=torch.zeros(2, 1, 10, 10))
    with pytest.raises(ValueError, match="has 5 columns"):
        model(ids, attention_mask=torch.ones(2, 5))
    with pytest.raises(ValueError, match="output_attentions"):
        model(ids, output_attentions=True)
    quantised = build("llama")
    quantised.model.layers[1].self_attn.q_proj = torch.nn.Bilinear(2, 2, 2)
    with pytest.raises(ValueError, match="Bilinear as q_proj"):
        lc.patch(quantised, mamba="1")


def test_a_failure_half_way_undoes_the_swap(monkeypatch):
    model = build("llama")
    before = fingerprint(model)

    def broken(*args):
        raise RuntimeError("no more memory")

    monkeypatch.setattr(patching, "_switch", broken)
    with pytest.raises(RuntimeError):
        lc.patch(model, mamba="0,2", attention="window:6")
    assert fingerprint(model) == before


def test_patterns_pass_over_mamba_layers():
    model = lc.patch(build("llama"), mamba="1", attention="0=full;*=window:6")
    shown = lc.describe(model).layers
    assert [layer.mixer for layer in shown] == ["attention", "mamba2", "attention"]
    assert [layer.given for layer in shown] == ["full", None, "window:6"]
    lc.unpatch(model)
    for attention in ("1=window:4", "::1=window:4", "0,1=window:4"):
        with pytest.raises(ValueError, match=r"layer 1 is of type 'linear_attention'.*'\*', which passes over"):
            lc.patch(model, mamba="1", attention=attention)
    with pytest.raises(ValueError, match="already name all attention layers"):
        lc.patch(model, mamba="1", attention="0,2=full;*=window:6")


@torch.no_grad()
def test_attention_and_rope_alone_can_be_undone():
    ids = tokens(1, 30)
    alone = hybrid("llama", "mamba")(ids).logits
    model = hybrid("llama", "all")
    assert torch.equal(lc.unpatch(model, mamba=False)(ids).logits, alone)
    assert lc.describe(model).layers[0].pattern == "full"
    assert torch.equal(lc.unpatch(model)(ids).logits, build("llama")(ids).logits)


@torch.no_grad()
def test_copies_and_pickles_undo_themselves_alone():
    model, ids = build("qwen3"), tokens(1, 30)
    stock = model(ids).logits
    lc.patch(model, **PLANS["all"])
    patched = model(ids).logits
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(ids).logits, patched)
        assert torch.equal(lc.unpatch(twin)(ids).logits, stock)
        assert torch.equal(model(ids).logits, patched)


def test_cast_meanwhile_it_is_undone_in_the_new_dtype():
    expected = build("llama").to(torch.bfloat16)
    model = lc.unpatch(hybrid().to(torch.bfloat16))
    assert torch.equal(model(tokens(1, 9)).logits, expected(tokens(1, 9)).logits)


@torch.no_grad()
def test_undone_it_is_of_the_dtype_of_the_rest_and_never_lost():
    """Mixers may be held in float32 to be trained, or be offloaded; the attention that stands by is neither."""
    expected, ids = build("llama").to(torch.bfloat16), tokens(1, 9)
    model = lc.patch(build("llama").to(torch.bfloat16), mamba="1")
    mixers(model)[1].to(torch.float32)
    assert torch.equal(lc.unpatch(model)(ids).logits, expected(ids).logits)
    lc.patch(model, mamba="1")
    mixers(model)[1].to("meta")
    assert torch.equal(lc.unpatch(model)(ids).logits, expected(ids).logits)


@torch.no_grad()
def test_teacher_and_student_run_on_the_same_hidden_states():
    model, stock, ids = hybrid("gemma3"), build("gemma3"), tokens(1, 30)
    seen, expected = {}, {}
    model.model.layers[1].self_attn.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    stock.model.layers[1].self_attn.register_forward_hook(lambda m, args, out: expected.update(out=out[0]))
    model(ids, use_cache=False)
    stock(ids, use_cache=False)
    [(index, teacher)] = teachers(model).items()
    assert index == 1
    assert torch.equal(teacher(**seen)[0], expected["out"])
    assert teachers(stock) == {}
    before = teacher.q_proj.weight.clone()
    mixers(model)[1].q_proj.weight.zero_()
    assert torch.equal(teacher.q_proj.weight, before)


# ------------------------------------------------------------------ what is said


def test_described(caplog):
    patching._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        model = lc.patch(build("gemma3"), mamba="0", attention="*=window:6")
        lc.unpatch(model)
        lc.patch(model, mamba="0", attention="*=window:6", rope="yarn:2")
    assert caplog.text.count("Gemma3ForCausalLM: layers 0 are converted to Mamba-2 and not trained since") == 1
    shown = lc.describe(model)
    assert [layer.mixer for layer in shown.layers] == ["mamba2", "attention", "attention"]
    assert [layer.rope for layer in shown.layers] == ["none", "yarn:2", "none"]
    first = shown.layers[0]
    # 2 states of 8 x 8 float32; 3 inputs of 16 + 16 + 32 channels; against 2 x 2 x 8 float32 a token.
    assert first.state_bytes == shown.state_bytes == 4 * 2 * 8 * 8 + 4 * 3 * 64
    assert first.crossover == 1280 // 128 + 1
    assert shown.healed is False
    text = str(shown)
    for part in ("mamba2 from attention", "1,280 bytes of state", "from 11 tokens on", "until it is healed"):
        assert part in text
    model.config.longctx["healed"] = True
    assert "healed" not in str(lc.describe(model))
    assert lc.describe(build("llama")).healed is None


@pytest.mark.parametrize("init", INITS)
def test_a_skeleton_is_described_like_the_model(init):
    from hf_longctx.hf.loading import skeleton

    model = lc.patch(build("phi3"), mamba=Mamba2("1", init), rope="linear:2")
    bare = lc.patch(skeleton(build("phi3").config), mamba=Mamba2("1", init), rope="linear:2")
    assert str(lc.describe(bare)) == str(lc.describe(model))
