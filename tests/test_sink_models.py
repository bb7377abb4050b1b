"""Models whose heads have learned sinks: gpt-oss, which is among the families of the contract, and others."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import DynamicCache

import hf_longctx as lc
from families import GROUPED, SINKS, WINDOW, build, dense, padding, tokens
from fingerprint import fingerprint
from hf_longctx.hf.eviction import most_columns
from hf_longctx.patterns import Full, Heads, SlidingWindow, parse

_KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
_SLIDING = {**GROUPED, "sliding_window": WINDOW, "layer_types": _KINDS}

#: Families beside gpt-oss: the class without its ending, and its config's arguments.
OTHERS = {
    "granite_swa": ("GraniteSWA", {**_SLIDING, "attention_multiplier": 0.3}),
    "flint": ("Flint", {**_SLIDING, "head_dim": 8, "mlp_only_layers": [0, 1, 2], "num_experts": 2}),
    # Values of another head size, and sinks in the sliding layers alone.
    "mimo_v2_flash": (
        "MiMoV2Flash",
        {**_SLIDING, "num_key_value_heads": 1, "head_dim": 12, "v_head_dim": 8, "mlp_layer_types": ["dense"] * 3},
    ),
}
FAMILIES = [*SINKS, *OTHERS]


def make(family: str):
    """A tiny model, stock: its attention is eager. Sinks are far enough from 0 to matter."""
    if family in OTHERS:
        name, arguments = OTHERS[family]
        if not hasattr(transformers, f"{name}Config"):
            pytest.skip(f"this transformers has no {name}")
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**arguments)
        model = getattr(transformers, f"{name}ForCausalLM")._from_config(config, attn_implementation="eager").eval()
    else:
        model = build(family, attention="eager")
    sinks = [p for name, p in model.named_parameters() if name.endswith("sinks")]
    assert sinks
    with torch.no_grad():
        for i, one in enumerate(sinks):
            one.copy_(torch.tensor([2.0, -1.0, 1.0, 0.0]).roll(i))
    return model


def positions(mask):
    return (mask.cumsum(-1) - 1).clamp(min=0)


@pytest.mark.parametrize("text", ["full", "window:6+global:2", "heads(window:4|full)", "block:8,1"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_the_stock_model(family, text):
    """Under the pattern as a dense mask, joined with each layer's own window; left padding; all parameters."""
    if family == "mimo_v2_flash" and "heads" in text:  # its layers differ in key-value heads
        text = "0,2=window:4;1=full"
    ids, mask = tokens(2, 40), padding("left", 2, 40)
    how, real = {"attention_mask": mask, "position_ids": positions(mask)}, mask.bool()
    stock, model = make(family), lc.patch(make(family), attention=text)
    weight = torch.randn(2, 40, model.config.vocab_size, generator=torch.Generator().manual_seed(3))
    with dense(stock, parse(text), mask):
        want = stock(ids, **how).logits
        (want * weight)[real].mean().backward()
    got = model(ids, **how).logits
    (got * weight)[real].mean().backward()
    torch.testing.assert_close(got[real], want[real], atol=1e-4, rtol=1e-4)
    for (name, p), q in zip(stock.named_parameters(), model.parameters()):
        torch.testing.assert_close(q.grad, p.grad, atol=1e-6, rtol=1e-3, msg=name)
        assert not name.endswith("sinks") or (q.grad != 0).all()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_full_attention_is_stock(family):
    """The layers' own windows stay, and the sinks do: without them the logits are others."""
    ids, mask = tokens(2, 40), padding("left", 2, 40)
    stock, model = make(family), lc.patch(make(family), attention=Full())
    want = stock(ids, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(model(ids, attention_mask=mask).logits[mask.bool()], want, atol=1e-5, rtol=1e-5)
    for name, parameter in model.named_parameters():
        if name.endswith("sinks"):
            parameter.fill_(float("-inf"))
    assert (model(ids, attention_mask=mask).logits[mask.bool()] - want).abs().max() > 1e-3


@pytest.mark.parametrize("text", ["full", "window:6+global:2"])
@pytest.mark.parametrize("family", FAMILIES)
def test_generate_is_the_same_with_and_without_a_cache(family, text):
    ids, mask = tokens(2, 20), padding("left", 2, 20)
    model = lc.patch(make(family), attention=text)
    how = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "disable_compile": True}
    slow = model.generate(ids, use_cache=False, **how)
    assert torch.equal(model.generate(ids, **how), slow)
    if text == "full":
        assert torch.equal(make(family).generate(ids, **how), slow)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_cache_drops_keys_and_changes_nothing(family):
    """Fed in pieces; it holds the bytes that `describe` says."""
    model, ids = lc.patch(make(family), attention="window:6+global:2"), tokens(2, 48)
    expected = model(ids, use_cache=False).logits
    cache, parts = DynamicCache(config=model.config), []
    for start, stop in [(0, 20), *((i, i + 1) for i in range(20, 48))]:
        parts.append(model(ids[:, start:stop], past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(parts, 1), expected, atol=1e-4, rtol=1e-4)
    assert all(layer.keys.shape[2] <= most_columns(parse("window:6+global:2")) for layer in cache.layers)
    held = sum(t.nbytes for layer in cache.layers for t in layer._buffers if t.dtype == torch.float32)
    slots = sum(t.nbytes for layer in cache.layers for t in layer._buffers if t.dtype != torch.float32)
    assert held + 2 * slots == 2 * lc.describe(model).cache_bytes(48)


@pytest.mark.parametrize("backend", ["flex", "flash"])
@pytest.mark.parametrize("family", FAMILIES)
def test_backends_without_sinks_are_refused_before_anything_changes(family, backend):
    model = make(family)
    before = fingerprint(model)
    for pattern in (SlidingWindow(6), Full()):
        with pytest.raises(ValueError, match=f"'{backend}'.*it takes no learned sinks; use 'tiled' or 'dense'"):
            lc.patch(model, attention=pattern, backend=backend)
    assert fingerprint(model) == before


@pytest.mark.parametrize("backend", ["reference", "dense", "tiled"])
@torch.no_grad()
def test_backends_agree(backend):
    ids = tokens(2, 40)
    want = lc.patch(make("gpt_oss"), attention=Heads([SlidingWindow(5), Full()]))(ids).logits
    model = lc.patch(make("gpt_oss"), attention=Heads([SlidingWindow(5), Full()]), backend=backend)
    torch.testing.assert_close(model(ids).logits, want, atol=1e-5, rtol=1e-5)


def test_a_backend_for_one_head_size_is_refused_where_values_have_another():
    with pytest.raises(ValueError, match="'tiled'.*one head size, not 12 and 8"):
        lc.patch(make("mimo_v2_flash"), attention="window:6", backend="tiled")


def test_sinks_of_each_token_are_refused():
    """Inkling 2 works them out of the hidden states."""
    from hf_longctx.hf.attention import longctx_attention

    model = lc.patch(make("gpt_oss"), attention="full")
    q, mask = torch.randn(1, 4, 5, 8), torch.arange(5).view(1, 1, 1, 5)
    module = model.model.layers[0].self_attn
    with pytest.raises(ValueError, match="GptOssAttention passes 'sinks' to its attention"):
        longctx_attention(module, q, q[:, :2], q[:, :2], mask, sinks=torch.zeros(1, 4, 5, 1))


def test_mamba_layers_are_refused():
    with pytest.raises(ValueError, match="GptOssAttention, which cannot be converted to Mamba-2"):
        lc.patch(make("gpt_oss"), mamba="1")


def test_float32_sinks_of_a_model_in_bfloat16():
    """As Flint keeps them."""
    model = lc.patch(make("flint").to(torch.bfloat16), attention="window:6+global:2")
    for layer in model.model.layers:
        layer.self_attn.sinks.data = layer.self_attn.sinks.data.float()
    out = model(tokens(1, 30), labels=tokens(1, 30))
    out.loss.backward()
    assert out.logits.dtype == torch.bfloat16
    assert all(layer.self_attn.sinks.grad.dtype == torch.float32 for layer in model.model.layers)
