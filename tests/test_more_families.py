"""Families that hand less on to their attention than those of the contract, and models that must be refused."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DynamicCache,
    Exaone4Config,
    Exaone4ForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    NemotronConfig,
    NemotronForCausalLM,
    PersimmonConfig,
    PersimmonForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

import hf_longctx as lc
from families import GROUPED, SMALL, VOCAB, WINDOW, tokens
from fingerprint import fingerprint
from hf_longctx.hf.eviction import EvictingLayer, most_columns
from hf_longctx.measure.cost_child import cache_bytes
from hf_longctx.patterns import parse

_BIGCODE = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "initializer_range": 0.2}
_UNDROPPED = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
_SHARING = {
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 12,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": VOCAB,
    "hidden_size_per_layer_input": 8,
}

MORE = {
    "gpt_bigcode": (GPTBigCodeForCausalLM, lambda: GPTBigCodeConfig(**_BIGCODE, **_UNDROPPED)),
    "persimmon": (PersimmonForCausalLM, lambda: PersimmonConfig(**SMALL)),
    "stablelm": (StableLmForCausalLM, lambda: StableLmConfig(**GROUPED)),
    "nemotron": (NemotronForCausalLM, lambda: NemotronConfig(**GROUPED, head_dim=8)),
    # Keys are expanded after the cache has given them.
    "deepseek_v3": (
        DeepseekV3ForCausalLM,
        lambda: DeepseekV3Config(
            **SMALL,
            q_lora_rank=None,
            kv_lora_rank=16,
            qk_rope_head_dim=4,
            qk_nope_head_dim=8,
            v_head_dim=8,
            first_k_dense_replace=3,
            num_key_value_heads=4,
        ),
    ),
    "gemma4": (Gemma4ForCausalLM, lambda: Gemma4TextConfig(**SMALL | _SHARING | {"num_hidden_layers": 4})),
}


_SLIDING, _FULL = "sliding_attention", "full_attention"
#: Families that say elsewhere which layers have a window: in their masks alone, or on every layer; and those that do.
WINDOWED = {
    "qwen2_moe": (
        Qwen2MoeForCausalLM,
        lambda: Qwen2MoeConfig(
            **GROUPED, sliding_window=WINDOW, use_sliding_window=True, layer_types=[_SLIDING, _FULL, _SLIDING],
            num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16, shared_expert_intermediate_size=16,
        ),
        [WINDOW, None, WINDOW],
    ),
    "phimoe": (
        PhimoeForCausalLM,
        lambda: PhimoeConfig(**GROUPED, sliding_window=WINDOW, num_local_experts=2),
        [WINDOW] * 3,
    ),
    "exaone4": (
        Exaone4ForCausalLM,
        lambda: Exaone4Config(**GROUPED, sliding_window=WINDOW, layer_types=[_SLIDING, _SLIDING, _FULL]),
        [WINDOW, WINDOW, None],
    ),
}  # fmt: skip


def build(name: str, **kwargs):
    cls, config, *_ = (MORE | WINDOWED)[name]
    torch.manual_seed(0)
    return cls._from_config(config(), **kwargs).eval()


@pytest.mark.parametrize("family", WINDOWED)
@torch.no_grad()
def test_a_layer_keeps_its_own_window_wherever_its_family_says_it(family):
    ids, windows = tokens(1, 40), WINDOWED[family][2]
    expected = build(family, attn_implementation="eager")(ids, use_cache=False).logits
    model = lc.patch(build(family), attention="full")
    shown = lc.describe(model)
    assert [layer.own_window for layer in shown.layers] == windows
    torch.testing.assert_close(model(ids, use_cache=False).logits, expected, atol=1e-4, rtol=1e-4)
    cache, parts = DynamicCache(config=model.config), []
    for start, stop in [(0, 20), *((i, i + 1) for i in range(20, 40))]:
        parts.append(model(ids[:, start:stop], past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(parts, 1), expected, atol=1e-4, rtol=1e-4)
    assert [isinstance(layer, EvictingLayer) for layer in cache.layers] == [w is not None for w in windows]


@pytest.mark.parametrize("family", [*MORE, *WINDOWED])
@pytest.mark.parametrize("pattern", [None, "window:6+global:2", "strided:4,4"])
@torch.no_grad()
def test_the_cache_holds_what_describe_says(family, pattern):
    """Also where layers store less than all heads, or nothing because they read the keys of others."""
    model = build(family) if pattern is None else lc.patch(build(family), attention=pattern)
    cache = DynamicCache(config=model.config)
    for start in range(0, 40, 8):
        model(tokens(1, 40)[:, start : start + 8], past_key_values=cache, use_cache=True)
    assert cache_bytes(cache)[0] == lc.describe(model).cache_bytes(40)


@torch.no_grad()
def test_layers_with_heads_of_their_own():
    """Gemma 4's full layers may have fewer and larger heads than its sliding ones."""
    config = Gemma4TextConfig(
        **SMALL | _SHARING | {"num_hidden_layers": 4, "num_kv_shared_layers": 0}, global_head_dim=16,
        attention_k_eq_v=True, num_global_key_value_heads=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model, ids = Gemma4ForCausalLM(config).eval(), tokens(1, 30)
    expected = model(ids, use_cache=False).logits
    assert [layer.kv_bytes for layer in lc.describe(model).layers] == [2 * 2 * 8 * 4, 2 * 16 * 4] * 2
    with lc.patched(model, attention="full"):
        torch.testing.assert_close(model(ids, use_cache=False).logits, expected, atol=1e-4, rtol=1e-4)
    with lc.patched(model, attention="1,3=heads(window:6);*=heads(window:6|full)"):
        assert [str(layer.pattern) for layer in lc.describe(model).layers][:2] == [
            "heads(window:6|window:12)", "heads(window:6)"
        ]  # fmt: skip
        model(ids)


@pytest.mark.parametrize("family", MORE)
@torch.no_grad()
def test_packed_documents_stay_apart(family):
    """Also where a family does not hand position ids on to its attention."""
    model, ids = lc.patch(build(family), attention="window:6+global:2"), tokens(1, 24)
    parts = [ids[:, :9], ids[:, 9:]]
    restarts = torch.cat([torch.arange(part.shape[1]) for part in parts])[None]
    packed = model(ids, position_ids=restarts, use_cache=False).logits
    apart = torch.cat([model(part, use_cache=False).logits for part in parts], 1)
    torch.testing.assert_close(packed, apart, atol=1e-4, rtol=1e-4)
    # What a forward was given is forgotten with it.
    torch.testing.assert_close(model(ids[:, :9], use_cache=False).logits, apart[:, :9], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", MORE)
@torch.no_grad()
def test_the_cache_drops_keys_and_changes_nothing(family):
    """Also where a family hands no keyword on, and where layers read the keys of others."""
    pattern = "window:6+global:2"
    model, ids = lc.patch(build(family), attention=pattern), tokens(2, 48)
    expected = model(ids, use_cache=False).logits
    cache, parts = DynamicCache(config=model.config), []
    for start, stop in [(0, 20), *((i, i + 1) for i in range(20, 48))]:
        parts.append(model(ids[:, start:stop], past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(parts, 1), expected, atol=1e-4, rtol=1e-4)
    dropping = [layer for layer in cache.layers if isinstance(layer, EvictingLayer)]
    assert dropping
    assert all(layer.keys.shape[2] <= most_columns(parse(pattern)) for layer in dropping)


def test_layers_that_share_keys_need_one_pattern():
    model = build("gemma4")
    with pytest.raises(ValueError, match=r"layer 2 of Gemma4.* reads the keys of layer 0.* under window:6, but it"):
        lc.patch(model, attention="2,3=full;*=window:6")
    lc.patch(model, attention="2,3=window:6;*=full", own_windows="replace")  # nothing is dropped


def test_layers_with_masks_of_their_own_are_refused():
    kinds = ["chunked_attention", "full_attention", "chunked_attention"]
    config = Llama4TextConfig(
        **GROUPED, head_dim=8, attention_chunk_size=8, layer_types=kinds, num_local_experts=2,
        intermediate_size_mlp=48,
    )  # fmt: skip
    model = Llama4ForCausalLM(config)
    before = fingerprint(model)
    with pytest.raises(
        ValueError, match=r"layer 0 of Llama4ForCausalLM is of type 'chunked_attention'.*patch `rope` only"
    ):
        lc.patch(model, attention="window:6")
    assert fingerprint(model) == before


@pytest.mark.parametrize("change", [{"attention": "window:6"}, {"mamba": "1"}, {"rope": "yarn:2"}])
def test_the_language_model_of_a_larger_one_is_asked_for(change):
    small = {**GROUPED, "head_dim": 8}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.device("meta"):
        model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=small, vision_config=vision))
    with pytest.raises(ValueError, match=r"more than a language model.*transformers\.Gemma3ForCausalLM"):
        lc.patch(model, **change)
