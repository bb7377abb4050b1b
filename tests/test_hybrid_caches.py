"""Caches of models with Mamba-2 layers: states beside keys and values, whatever is done to them."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache, StaticCache

import hf_longctx as lc
from families import build, padding, tokens
from hybrids import GREEDY, HYBRIDS, PLANS, hybrid

CHANGES = {
    "reordered": (lambda cache, rows: cache.reorder_cache(rows), [2, 0, 0]),
    "repeated": (lambda cache, rows: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
    "chosen": (lambda cache, rows: cache.batch_select_indices(rows), [2, 1]),
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_rows_of_a_cache(plan, change):
    model, ids, rest = hybrid("llama", plan), tokens(3, 20), tokens(3, 4, seed=2)
    act, rows = CHANGES[change]
    rows = torch.tensor(rows)
    cache = DynamicCache(config=model.config)
    act(cache, rows)  # nothing is there yet
    model(ids, past_key_values=cache)
    act(cache, rows)
    got = model(rest[rows], past_key_values=cache).logits
    expected = model(torch.cat([ids, rest], 1)[rows], use_cache=False).logits[:, 20:]
    torch.testing.assert_close(got, expected, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("plan", PLANS)
@torch.no_grad()
def test_rows_of_different_lengths_go_on_after_right_padding(plan):
    """The state is that of each row's last real token, not of its last column."""
    model, ids, rest, mask = hybrid("llama", plan), tokens(3, 20), tokens(3, 4, seed=2), padding("right", 3, 20)
    cache, parts, lengths = DynamicCache(config=model.config), [], mask.sum(1, keepdim=True)
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    model(ids, attention_mask=mask, position_ids=places, past_key_values=cache)
    for i in range(4):
        mask = torch.cat([mask, torch.ones(3, 1, dtype=torch.long)], 1)
        step = {"attention_mask": mask, "position_ids": lengths + i, "past_key_values": cache}
        parts.append(model(rest[:, i : i + 1], **step).logits)
    for row, length in enumerate(lengths[:, 0].tolist()):
        alone = model(torch.cat([ids[row, :length], rest[row]])[None], use_cache=False).logits[0, length:]
        torch.testing.assert_close(torch.cat(parts, 1)[row], alone, atol=5e-5, rtol=1e-4)


@torch.no_grad()
def test_snapshot_restore_and_reset():
    model, ids = hybrid("llama", "all"), tokens(2, 40)
    whole = model(ids).logits
    cache = DynamicCache(config=model.config)
    model(ids[:, :20], past_key_values=cache)
    snapshot = copy.deepcopy(cache)
    first = [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(20, 25)]
    again = [model(ids[:, i : i + 1], past_key_values=snapshot).logits for i in range(20, 25)]
    torch.testing.assert_close(torch.cat(first, 1), whole[:, 20:25], atol=5e-5, rtol=1e-4)
    for a, b in zip(first, again):
        assert torch.equal(a, b)
    cache.reset()
    assert cache.get_seq_length() == 0
    one = model(ids[:1], past_key_values=cache).logits  # other rows than before
    torch.testing.assert_close(one, whole[:1], atol=5e-5, rtol=1e-4)


@torch.no_grad()
def test_a_state_of_inference_mode_goes_on_outside():
    model, ids = hybrid(), tokens(1, 12)
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(ids[:, :10], past_key_values=cache)
    parts = [model(ids[:, i : i + 1], past_key_values=cache).logits for i in (10, 11)]
    torch.testing.assert_close(torch.cat(parts, 1), model(ids).logits[:, 10:], atol=5e-5, rtol=1e-4)


def test_gradients_reach_through_a_cache():
    model, ids = hybrid(), tokens(1, 12)
    whole = torch.autograd.grad(model(ids).logits[:, 8:].sum(), model.model.layers[1].self_attn.v_proj.weight)[0]
    cache = DynamicCache(config=model.config)
    model(ids[:, :8], past_key_values=cache)
    parts = [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(8, 12)]
    split = torch.autograd.grad(torch.cat(parts, 1).sum(), model.model.layers[1].self_attn.v_proj.weight)[0]
    torch.testing.assert_close(split, whole, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_a_cache_without_a_config_keeps_keys_and_states():
    model, ids = hybrid("llama", "first"), tokens(1, 30)
    cache = DynamicCache()
    parts = [model(part, past_key_values=cache).logits for part in ids.split([10, 1, 19], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(ids).logits, atol=5e-5, rtol=1e-4)
    assert [type(layer).__name__ for layer in cache.layers] == ["StateLayer", "DynamicLayer", "StateLayer"]


@torch.no_grad()
def test_caches_of_other_models_are_refused():
    stock, model, ids = build("llama"), hybrid(), tokens(1, 8)
    filled = stock(ids, past_key_values=DynamicCache(config=stock.config)).past_key_values
    with pytest.raises(ValueError, match=r"layer 1 is a Mamba layer.*empty cache"):
        model(ids, past_key_values=filled)
    states = model(ids, past_key_values=DynamicCache(config=model.config)).past_key_values
    with pytest.raises(ValueError, match="made for a model with Mamba layers"):
        stock(ids, past_key_values=states)
    with pytest.raises(ValueError, match=r"cannot take 2 tokens back.*deepcopy"):
        states.layers[1].crop(-2)
    assert not states.is_croppable


def test_assisted_decoding_is_refused():
    model, stock, ids = hybrid(), build("llama"), tokens(1, 10)
    with pytest.raises(ValueError, match="not supported with stateful models"):
        model.generate(ids, assistant_model=stock, **GREEDY)
    with pytest.raises(ValueError, match="not supported with stateful models"):
        model.generate(ids, prompt_lookup_num_tokens=3, **GREEDY)
    with pytest.raises(ValueError, match="cannot assist"):
        stock.generate(ids, assistant_model=model, **GREEDY)


@torch.no_grad()
def test_bytes_are_those_of_the_tensors():
    from hf_longctx.measure.cost_child import cache_bytes

    for family in HYBRIDS:
        for plan in PLANS:
            model = hybrid(family, plan)
            for dtype in (torch.float32, torch.bfloat16):
                cache = model.to(dtype)(tokens(1, 60)).past_key_values
                assert cache_bytes(cache)[0] == lc.describe(model).cache_bytes(60)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", HYBRIDS)
@torch.no_grad()
def test_empty_slots_of_a_static_cache_are_not_seen(family, plan):
    """Without a mask transformers takes every slot for a token where a cache cannot be compiled, and states cannot."""
    model, ids = hybrid(family, plan), tokens(2, 12)
    grown = model.generate(ids, **GREEDY, output_logits=True, return_dict_in_generate=True)
    static = model.generate(
        ids, **GREEDY, output_logits=True, return_dict_in_generate=True, cache_implementation="static"
    )
    assert torch.equal(grown.sequences, static.sequences)
    torch.testing.assert_close(static.logits, grown.logits, atol=5e-5, rtol=1e-4)
    cache = StaticCache(config=model.config, max_cache_len=20)  # from its first token on
    logits = torch.cat([model(ids[:, t : t + 1], past_key_values=cache).logits for t in range(12)], 1)
    torch.testing.assert_close(logits, model(ids, use_cache=False).logits, atol=5e-5, rtol=1e-4)


@torch.no_grad()
def test_a_forward_that_fails_leaves_nothing_in_a_static_cache():
    model, ids, mask = hybrid(), tokens(2, 6), padding("left", 2, 6)
    cache = StaticCache(config=model.config, max_cache_len=12)
    failing = model.model.layers[0].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(ids, past_key_values=cache)
    failing.remove()
    cache.reset()
    assert not cache.is_compileable
    expected = model.generate(ids, attention_mask=mask, **GREEDY)
    assert torch.equal(model.generate(ids, attention_mask=mask, past_key_values=cache, **GREEDY), expected)
