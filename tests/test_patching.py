"""patch, unpatch, patched: in place, refused twice, undone bit for bit."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import hf_longctx as lc
from families import FAMILIES, build, tokens
from fingerprint import fingerprint
from hf_longctx.patterns import Full, Global, Layers, SlidingWindow, parse
from hf_longctx.rope import YaRN

CHANGES = {
    "attention": {"attention": SlidingWindow(8) | Global(2)},
    "layers": {"attention": "0,-1=full;*=window:6"},
    "rope": {"rope": "yarn:4"},
    "dynamic": {"rope": "dynamic:1"},
    "both": {"attention": "window:8+global:2", "rope": YaRN(2), "own_windows": "replace"},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("family", FAMILIES)
def test_unpatch_restores_everything(family, change):
    model, ids = build(family), tokens(2, 30)
    with torch.no_grad():
        before, logits = fingerprint(model), model(ids).logits
        assert lc.patch(model, **CHANGES[change]) is model
        assert isinstance(model, FAMILIES[family][1])
        model(ids)
        model.generate(ids, max_new_tokens=2, do_sample=False)
        changed = fingerprint(model)
        assert changed["config"] != before["config"]
        assert lc.unpatch(model) is model
        after = fingerprint(model)
        for what, value in before.items():
            assert after[what] == value, what
        assert torch.equal(model(ids).logits, logits)


def test_patching_changes_the_logits():
    """So that the undo test cannot pass by doing nothing."""
    for family in FAMILIES:
        for change in ({"attention": SlidingWindow(4)}, {"rope": "linear:4"}):
            model, ids = build(family), tokens(1, 30)
            with torch.no_grad():
                before = model(ids).logits
                assert (lc.patch(model, **change)(ids).logits - before).abs().max() > 1e-3


def test_patched_is_a_context():
    model, ids = build("llama"), tokens(1, 30)
    with torch.no_grad():
        before = model(ids).logits
        with pytest.raises(KeyError), lc.patched(model, rope="yarn:2") as same:
            assert same is model
            assert lc.is_patched(model)
            raise KeyError
        assert not lc.is_patched(model)
        assert torch.equal(model(ids).logits, before)


def test_a_deep_copy_undoes_itself_alone():
    model, ids = build("llama"), tokens(1, 30)
    with torch.no_grad():
        stock = model(ids).logits
        lc.patch(model, attention="window:4", rope="dynamic:1")
        patched = model(ids).logits
        twin = copy.deepcopy(model)
        assert torch.equal(twin(ids).logits, patched)
        assert twin.generate.args == (twin,)
        lc.unpatch(twin)
        assert torch.equal(twin(ids).logits, stock)
        assert torch.equal(model(ids).logits, patched)
        lc.unpatch(model)
        assert torch.equal(model(ids).logits, stock)


def test_pickled_a_patched_model_works_and_undoes_itself():
    model, ids = build("llama"), tokens(1, 30)
    stock = model(ids).logits
    twin = pickle.loads(pickle.dumps(lc.patch(model, attention="window:4", rope="dynamic:1")))
    settings = {"max_new_tokens": 60, "do_sample": False}  # past the trained length: the held one matters
    assert torch.equal(twin.generate(ids, **settings), model.generate(ids, **settings))
    assert torch.equal(lc.unpatch(twin)(ids).logits, stock)


def test_cast_meanwhile_it_is_undone_in_the_new_dtype():
    expected = build("llama").to(torch.bfloat16)
    model = lc.unpatch(lc.patch(build("llama"), rope="yarn:2").to(torch.bfloat16))
    assert torch.equal(model.model.rotary_emb.inv_freq, expected.model.rotary_emb.inv_freq)
    assert torch.equal(model(tokens(1, 9)).logits, expected(tokens(1, 9)).logits)


def test_undone_by_hand_inside_the_context():
    model = build("llama")
    with lc.patched(model, rope="yarn:2"):
        lc.unpatch(model)
        lc.patch(model, rope="linear:2")
    assert model.config.longctx["rope"] == "linear:2"


def test_text_and_objects_are_the_same():
    ids = tokens(1, 30)
    with torch.no_grad():
        text = lc.patch(build("llama"), attention="0=full;*=window:6+global:2", rope="yarn:2")(ids).logits
        plan = Layers({"0": Full(), "*": SlidingWindow(6) | Global(2)})
        objects = lc.patch(build("llama"), attention=plan, rope=YaRN(factor=2))(ids).logits
    assert torch.equal(text, objects)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing to do"),
        ({"attention": "windo:4"}, "did you mean 'window'"),
        ({"attention": "window:0"}, "window is 0"),
        ({"attention": "window:4", "backend": "tield"}, "did you mean 'tiled'"),
        ({"attention": "window:4", "own_windows": "ignore"}, "intersect, replace"),
        ({"attention": "7=window:4"}, "'7' matches no layer"),
        ({"attention": "0=full;0:2=window:4"}, "claimed by both"),
        ({"attention": "heads(full|full|full)"}, "divide"),
        ({"rope": "yarm:4"}, "yarn"),
        ({"rope": "yarn:0.5"}, "0.5"),
        ({"rope": "yarn:to=32"}, "32"),
        ({"rope": "yarn:2", "backend": "foo"}, "backend is 'foo'"),
        ({"mamba": "7"}, "'7' matches no layer"),
        ({"mamba": "*"}, "leaves no attention layer among 3"),
        ({"mamba": "1,init=rondom"}, "did you mean 'random'"),
        ({"mamba": 3}, "mamba is 3"),
        ({"mamba": "1", "attention": "1=window:4;*=full"}, "layer 1 is of type 'linear_attention'"),
        ({"mamba": "1", "rope": "yarn:0.5"}, "0.5"),
        ({"attention": "window:4", "rope": "linear:nan"}, "nan"),
    ],
)
def test_bad_arguments_change_nothing(arguments, message):
    model = build("llama")
    before = fingerprint(model)
    with pytest.raises((ValueError, TypeError), match=message):
        lc.patch(model, **arguments)
    assert fingerprint(model) == before


def test_wrong_order_is_refused():
    model = build("llama")
    with pytest.raises(ValueError, match="not patched"):
        lc.unpatch(model)
    lc.patch(model, attention="window:4")
    with pytest.raises(ValueError, match=r"already patched.*unpatch"):
        lc.patch(model, rope="yarn:2")
    with pytest.raises(ValueError, match=r"compiled.*patch the model first"):
        lc.patch(torch.compile(build("llama")), attention="window:4")
    inside = build("llama")
    inside.compile()
    with pytest.raises(ValueError, match="compiled"):
        lc.patch(inside, attention="window:4")
    forward = build("llama")
    forward.forward = torch.compile(forward.forward)
    with pytest.raises(ValueError, match="compiled"):
        lc.patch(forward, attention="window:4")


def test_a_rotary_module_that_cannot_be_rebuilt_leaves_nothing_changed(monkeypatch):
    model = build("llama")
    before = fingerprint(model)

    def broken(self, config):
        raise RuntimeError("no such module")

    monkeypatch.setattr(type(model.model.rotary_emb), "__init__", broken)
    with pytest.raises(RuntimeError):
        lc.patch(model, rope="yarn:2")
    assert fingerprint(model) == before


def test_unpatching_a_wrapper_is_refused_and_changes_nothing():
    model = lc.patch(build("llama"), attention="window:4")
    before = fingerprint(model)
    with pytest.raises(TypeError, match="get_base_model"):
        lc.unpatch(torch.nn.Sequential(model))
    assert fingerprint(model) == before


def test_models_that_cannot_be_patched():
    small = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    with pytest.raises(TypeError, match="Linear"):
        lc.patch(torch.nn.Linear(2, 2), attention="full")
    with pytest.raises(ValueError, match="not a causal language model"):
        lc.patch(BertForMaskedLM(BertConfig(**small)), attention="full")
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=61, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4))
    with pytest.raises(ValueError, match="not a causal language model"):
        lc.patch(t5, attention="full")
    gemma2 = Gemma2ForCausalLM(Gemma2Config(**small, num_key_value_heads=2, head_dim=8))
    with pytest.raises(ValueError, match="soft-capped"):
        lc.patch(gemma2, attention="full")
    mamba = MambaForCausalLM(MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2, state_size=4))
    with pytest.raises(ValueError, match="MambaForCausalLM"):
        lc.patch(mamba, attention="full")
    with pytest.raises(ValueError, match="no RoPE to scale"):
        lc.patch(mamba, rope="yarn:2")
    with pytest.raises(ValueError, match="no num_attention_heads"):
        lc.describe(mamba)
    with pytest.raises(TypeError, match="NoneType"):
        lc.describe(None)


def test_what_would_be_ignored_is_refused():
    ids = tokens(1, 20)
    model = lc.patch(build("llama", attention_dropout=0.1), attention="window:4")
    with pytest.raises(ValueError, match="4-D"):
        model(ids, attention_mask=torch.zeros(1, 1, 20, 20))
    with pytest.raises(ValueError, match=r"int64 mask of shape \(1, 1, 1, 20\).*4-D"):
        model(ids, attention_mask=torch.ones(1, 1, 1, 20, dtype=torch.int64))
    with pytest.raises(ValueError, match="output_attentions"):
        model(ids, output_attentions=True)
    with pytest.raises(ValueError, match="dropout is 0.1"):
        model.train()(ids)


@torch.no_grad()
def test_a_mask_that_lacks_tokens_is_refused():
    model = lc.patch(build("llama"), attention="window:4+global:2")
    cache = model(tokens(1, 30)).past_key_values
    with pytest.raises(ValueError, match="attention_mask has 5 columns, but there are 35 tokens, of which 5 are new"):
        model(tokens(1, 5), attention_mask=torch.ones(1, 5), past_key_values=cache)


def test_the_name_set_by_hand_is_refused():
    model = build("llama")
    model.set_attn_implementation("longctx")
    with pytest.raises(ValueError, match="holds no plan"):
        model(tokens(1, 8))


def test_describe_shows_each_layer():
    model = lc.patch(build("gemma3"), attention="1=window:32+global:2;*=window:6", rope="yarn:4")
    shown = lc.describe(model)
    assert [layer.pattern for layer in shown.layers] == ["window:6", "window:32+global:2", "window:6"]
    assert [layer.own_window for layer in shown.layers] == [12, None, 12]
    assert [layer.reach for layer in shown.layers] == [5, 31, 5]
    assert [layer.reach_so_far for layer in shown.layers] == [5, 36, 41]
    rules = ("window:6", "window:32+global:2", "window:6")
    assert [layer.share for layer in shown.layers] == [parse(r).count(256) / Full().count(256) for r in rules]
    assert [layer.rope for layer in shown.layers] == ["none", "yarn:4", "none"]
    assert shown.reach == 5 + 31 + 5
    assert (shown.rope, shown.trained, shown.max_positions) == ("yarn:4", 64, 256)
    assert shown.kv_bytes == 3 * 2 * 2 * 8 * 4
    text = str(shown)
    for part in ("window:32+global:2", "yarn:4", "reach through 3 layers: 41 tokens", "own window", "sees at 256"):
        assert part in text
    stock = lc.describe(lc.unpatch(model))
    assert [layer.pattern for layer in stock.layers] == ["window:12", "full", "window:12"]
    assert [layer.share is not None and layer.share < 1 for layer in stock.layers] == [True, False, True]
    assert [layer.reach_so_far for layer in stock.layers] == [11, None, None]
    assert not stock.patched
    assert stock.reach is None


def test_a_patched_model_on_the_meta_device_has_shapes():
    """With a cache that drops keys, and padding."""
    model, ids = lc.patch(build("mistral"), attention="window:5+global:2").to("meta"), tokens(2, 20).to("meta")
    out = model(ids[:, :12], attention_mask=torch.ones_like(ids)[:, :12], use_cache=True)
    out = model(ids[:, 12:], attention_mask=torch.ones_like(ids), past_key_values=out.past_key_values)
    assert (out.logits.device.type, out.logits.shape) == ("meta", (2, 8, model.config.vocab_size))
