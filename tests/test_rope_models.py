"""RoPE scaling on model classes: frequencies follow, the config is right, caches agree, files load anywhere."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

import hf_longctx as lc
from families import FAMILIES, TRAINED, build, tokens
from hf_longctx.hf import rotary
from hf_longctx.rope import DynamicNTK, LongRoPE, NTKByParts, YaRN, names, parse

#: A text form of every method, for a rotary dim of `dim`.
EXAMPLES = {
    "linear": "linear:4",
    "ntk": "ntk:4",
    "dynamic": "dynamic:1",
    "by-parts": "by-parts:4",
    "yarn": "yarn:4,beta_fast=8",
    "llama3": "llama3:4",
    "none": "none",
}


def example(name: str, dim: int) -> str:
    if name == "longrope":
        pairs = dim // 2
        long = "/".join(str(1.5 + i) for i in range(pairs))
        return f"longrope:4,short={'/'.join(['1'] * pairs)},long={long}"
    return EXAMPLES[name]


EVERYWHERE = [(f, m) for f in FAMILIES for m in names() if m != "none"]


@pytest.mark.parametrize(("family", "method"), EVERYWHERE)
def test_frequencies_follow_the_formula(family, method):
    model = build(family)
    numbers = rotary.geometry(model.config)
    scaling = parse(example(method, numbers.dim))
    before = [rotary.frequencies(m).clone() for m in rotary.rotary_modules(model)]
    local = [getattr(m, "sliding_attention_inv_freq", None) for m in rotary.rotary_modules(model)]
    lc.patch(model, rope=scaling)
    length = 3 * TRAINED if scaling.length_dependent else TRAINED
    with torch.no_grad():
        model(tokens(1, length))
    expected = scaling.inv_freq(numbers.dim, numbers.base, numbers.trained, length).float()
    for module, old, sliding in zip(rotary.rotary_modules(model), before, local):
        torch.testing.assert_close(rotary.frequencies(module), expected, rtol=1e-6, atol=0)
        assert not torch.equal(rotary.frequencies(module), old)
        nested = "full_attention_attention_scaling"
        applied = getattr(module, nested) if hasattr(module, nested) else module.attention_scaling
        assert applied == pytest.approx(scaling.attention_scaling(TRAINED), rel=1e-6)
        if sliding is not None:
            assert torch.equal(module.sliding_attention_inv_freq, sliding)


@pytest.mark.parametrize(("family", "method"), EVERYWHERE)
def test_config_states_the_window(family, method):
    model = build(family)
    scaling = parse(example(method, rotary.geometry(model.config).dim))
    theta = rotary.parameters_of(model.config)[0]["rope_theta"]
    sliding = dict(model.config.rope_parameters.get("sliding_attention") or {})
    lc.patch(model, rope=scaling)
    written, _ = rotary.parameters_of(model.config)
    assert model.config.max_position_embeddings == (TRAINED if method == "dynamic" else 4 * TRAINED)
    if written["rope_type"] in ("yarn", "llama3", "longrope"):
        assert written["original_max_position_embeddings"] == TRAINED
    if method != "ntk":
        assert written["rope_theta"] == theta
    assert dict(model.config.rope_parameters.get("sliding_attention") or {}) == sliding
    assert lc.describe(model).max_positions == model.config.max_position_embeddings
    assert lc.describe(model).trained == TRAINED


@pytest.mark.parametrize(("family", "method"), EVERYWHERE)
def test_a_checkpoint_with_only_rope_changed_loads_anywhere(family, method, tmp_path):
    model, ids = build(family), tokens(1, TRAINED + 20)
    lc.patch(model, rope=example(method, rotary.geometry(model.config).dim))
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(ids).logits
        ours = lc.from_pretrained(tmp_path)
        assert torch.equal(ours(ids).logits, expected)
        plain = AutoModelForCausalLM.from_pretrained(tmp_path)
        if family == "phi3" and method == "dynamic":
            # Phi-3's config has no such type: within the trained length it is plain RoPE, beyond only we can scale it.
            short = tokens(1, TRAINED)
            torch.testing.assert_close(plain(short).logits, model(short).logits, atol=1e-5, rtol=1e-5)
        else:
            torch.testing.assert_close(plain(ids).logits, expected, atol=2e-5, rtol=1e-4)
    stock = build(family)
    with torch.no_grad():
        assert torch.equal(lc.unpatch(ours)(ids).logits, stock(ids).logits)
        assert torch.equal(lc.unpatch(plain)(ids).logits, stock(ids).logits)
    assert plain.config.max_position_embeddings == TRAINED


@pytest.mark.parametrize("method", ["dynamic", "longrope"])
@pytest.mark.parametrize("family", FAMILIES)
def test_generate_agrees_with_and_without_a_cache(family, method):
    """The length is that of prompt and new tokens together, so keys of one sequence are all rotated alike."""
    model, ids = build(family), tokens(2, TRAINED - 4)
    numbers = rotary.geometry(model.config)
    scaling = parse(example(method, numbers.dim))
    lc.patch(model, rope=scaling)
    new = 8
    how = {"max_new_tokens": new, "do_sample": False, "disable_compile": True, "attention_mask": torch.ones_like(ids)}
    cached = model.generate(ids, **how)
    expected = scaling.inv_freq(numbers.dim, numbers.base, TRAINED, TRAINED - 4 + new).float()
    for module in rotary.rotary_modules(model):
        torch.testing.assert_close(rotary.frequencies(module), expected, rtol=1e-6, atol=0)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **how))
    assert torch.equal(cached, model.generate(ids, cache_implementation="static", **how))
    assert torch.equal(cached, model.generate(ids, num_beams=1, prefill_chunk_size=16, **how))
    longer = model.generate(ids, max_length=TRAINED + 9, do_sample=False)
    assert longer.shape[1] == TRAINED + 9
    grown = scaling.inv_freq(numbers.dim, numbers.base, TRAINED, TRAINED + 9).float()
    torch.testing.assert_close(rotary.frequencies(rotary.rotary_modules(model)[0]), grown, rtol=1e-6, atol=0)


def test_one_cache_over_several_turns_under_a_held_length():
    model = lc.patch(build("llama"), rope="dynamic:1")
    first, second, cache = tokens(1, TRAINED), tokens(1, 20, seed=2), DynamicCache()

    def answer(ids, **how):  # a mask of its own, since a token drawn may be the padding one
        seen = torch.ones_like(ids)
        return model.generate(ids, attention_mask=seen, max_new_tokens=8, do_sample=False, **how)

    with lc.held_length(model, TRAINED + 40):
        ids = torch.cat([answer(first, past_key_values=cache), second], dim=1)
        cached = answer(ids, past_key_values=cache)
        assert torch.equal(cached, answer(ids, use_cache=False))
    with pytest.raises(ValueError, match=r"hf_longctx.held_length\(model, "):
        answer(torch.cat([cached, second], dim=1), past_key_values=cache)


def test_dynamic_under_generate_does_not_count_padding():
    model = lc.patch(build("llama"), rope="dynamic:1")
    ids = tokens(1, TRAINED - 8)
    alone = model.generate(ids, max_new_tokens=16, do_sample=False)  # past the trained length
    padded = torch.cat([torch.zeros(1, 12, dtype=torch.long), ids], dim=1)
    mask = torch.cat([torch.zeros(1, 12, dtype=torch.long), torch.ones_like(ids)], dim=1)
    assert torch.equal(model.generate(padded, attention_mask=mask, max_new_tokens=16, do_sample=False)[:, 12:], alone)
    how = {"max_new_tokens": 1, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    scores = {
        name: model.generate(given, attention_mask=seen, **how).scores[0]
        for name, given, seen in (("alone", ids, torch.ones_like(ids)), ("padded", padded, mask))
    }
    torch.testing.assert_close(scores["padded"], scores["alone"], atol=1e-5, rtol=1e-5)


def test_transformers_own_dynamic_differs_with_a_cache():
    """Why we hold the length: without it, cached keys keep the base of the step that made them."""
    stock, ids = build("llama"), tokens(1, TRAINED - 10)
    parameters = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    stock.config.rope_parameters = parameters
    stock.model.rotary_emb = type(stock.model.rotary_emb)(stock.config)
    with torch.no_grad():
        full = stock(tokens(1, TRAINED + 40)).logits
        cache, parts = None, []
        for part in tokens(1, TRAINED + 40).split(13, dim=1):
            out = stock(part, past_key_values=cache, use_cache=True)
            cache, parts = out.past_key_values, [*parts, out.logits]
    assert (torch.cat(parts, 1) - full).abs().max() > 1e-4
    assert ids.shape[1] < TRAINED


def test_a_bare_forward_uses_its_own_length_and_a_cache_keeps_its_own():
    model = lc.patch(build("llama"), rope=DynamicNTK())
    ids = tokens(1, 3 * TRAINED)
    numbers = rotary.geometry(build("llama").config)

    def used(length):
        return DynamicNTK().inv_freq(numbers.dim, numbers.base, TRAINED, length).float()

    module = rotary.rotary_modules(model)[0]
    with torch.no_grad():
        model(ids)
        torch.testing.assert_close(rotary.frequencies(module), used(3 * TRAINED))
        out = model(ids[:, : 2 * TRAINED], use_cache=True)
        torch.testing.assert_close(rotary.frequencies(module), used(2 * TRAINED))
        model(ids[:, 2 * TRAINED :], past_key_values=out.past_key_values)
        torch.testing.assert_close(rotary.frequencies(module), used(2 * TRAINED))
        with lc.held_length(model, 5 * TRAINED):
            model(ids)
            torch.testing.assert_close(rotary.frequencies(module), used(5 * TRAINED))
            with pytest.raises(ValueError, match=r"filled for a length of 128.*320"):
                model(ids[:, :4], past_key_values=out.past_key_values)
        model(ids[:, :9], past_key_values=StaticCache(config=model.config, max_cache_len=100))
        torch.testing.assert_close(rotary.frequencies(module), used(100))


def test_left_padding_does_not_lengthen_a_sequence():
    model, ids = lc.patch(build("llama"), rope=DynamicNTK()), tokens(1, TRAINED)
    mask = torch.cat([torch.zeros(1, 40, dtype=torch.long), torch.ones_like(ids)], 1)
    padded = torch.cat([tokens(1, 40, seed=5), ids], 1)
    with torch.no_grad():
        expected = model(ids).logits
        got = model(padded, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits[:, 40:]
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


class TestExistingScaling:
    """A new factor counts from the trained length, says so, and never shrinks the window."""

    def scaled(self, tmp_path, rope="yarn:4"):
        model = lc.patch(build("llama"), rope=rope)
        del model.config.longctx
        model.save_pretrained(tmp_path)
        return AutoModelForCausalLM.from_pretrained(tmp_path)

    @pytest.mark.parametrize("native", ["yarn:4", "linear:4", "llama3:4"])
    def test_counts_from_the_trained_length(self, tmp_path, caplog, native):
        model = self.scaled(tmp_path, native)
        with caplog.at_level(logging.INFO, logger="hf_longctx"):
            lc.patch(model, rope="yarn:8")
        assert model.config.max_position_embeddings == 8 * TRAINED
        assert model.config.rope_parameters["original_max_position_embeddings"] == TRAINED
        assert "counts from its trained length 64, not from 256" in caplog.text

    def test_to_a_target(self, tmp_path):
        model = self.scaled(tmp_path)
        lc.patch(model, rope=YaRN.to(32768))
        assert model.config.rope_parameters["factor"] == 32768 / TRAINED
        assert model.config.max_position_embeddings == 32768

    def test_shrinking_is_refused(self, tmp_path):
        model = self.scaled(tmp_path)
        with pytest.raises(ValueError, match=r"shrink the window.*at least 4"):
            lc.patch(model, rope="yarn:2")
        assert model.config.max_position_embeddings == 4 * TRAINED

    def test_none_removes_it(self, tmp_path):
        model, ids = self.scaled(tmp_path), tokens(1, 40)
        lc.patch(model, rope="none")
        assert model.config.max_position_embeddings == TRAINED
        with torch.no_grad():
            torch.testing.assert_close(model(ids).logits, build("llama")(ids).logits)


def test_nested_truncate_is_honoured(tmp_path):
    """transformers reads `truncate` from the outer dict only; ours must still be the formula, also after loading."""
    model, ids = build("gemma3"), tokens(1, 40)
    lc.patch(model, rope="yarn:4,truncate=false")
    model.save_pretrained(tmp_path)
    numbers = rotary.geometry(build("gemma3").config)
    expected = parse("yarn:4,truncate=false").inv_freq(numbers.dim, numbers.base, TRAINED).float()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    for each in (model, plain):
        torch.testing.assert_close(rotary.frequencies(rotary.rotary_modules(each)[0]), expected, rtol=1e-6, atol=0)
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, model(ids).logits)


def test_by_parts_is_exported_as_llama3():
    model = lc.patch(build("llama"), rope=NTKByParts(4))
    assert model.config.rope_parameters["rope_type"] == "llama3"


def test_a_model_without_rope_is_refused():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=61))
    with pytest.raises(ValueError, match="no RoPE to scale"):
        lc.patch(model, rope="yarn:2")


def test_longrope_lists_must_fit():
    with pytest.raises(ValueError, match="pairs"):
        lc.patch(build("llama"), rope=LongRoPE(4, short_factor=[1, 1], long_factor=[1, 2]))
