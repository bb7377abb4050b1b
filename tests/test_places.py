"""What the layers of a forward share: worked out once, never stale, kept no longer, and waited for once at most."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

import hf_longctx as lc
from families import build, dense, tokens
from far_device import FAR, WAITS, Far, FarDevice
from hf_longctx.attention import decode, tiled
from hf_longctx.attention.layout import Layout
from hf_longctx.hf import places
from hf_longctx.patterns import parse

STREAMING = "window:12+global:2"
PACKED = torch.cat([torch.arange(25), torch.arange(15)])[None]


@pytest.fixture
def made(monkeypatch):
    """Counts the layouts made, and how often jobs and reads are worked out."""
    counts = {"layouts": 0, "jobs": 0, "reads": 0}

    def counted(name, call):
        def run(*args, **kwargs):
            counts[name] += 1
            return call(*args, **kwargs)

        return run

    monkeypatch.setattr(Layout, "of", counted("layouts", Layout.of))
    monkeypatch.setattr(tiled, "all_jobs", counted("jobs", tiled.all_jobs))
    monkeypatch.setattr(decode, "reads", counted("reads", decode.reads))
    return counts


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("mode", ["training", "checkpointed", "no_grad", "inference"])
def test_all_layers_share_one_layout(made, packed, mode):
    """Gradient checkpointing computes layers again in the backward pass, from the same one."""
    model = lc.patch(build("llama"), attention=STREAMING, backend="tiled")
    how = {"position_ids": PACKED} if packed else {}
    ids = tokens(1, PACKED.shape[1])
    if mode == "checkpointed":
        model.gradient_checkpointing_enable()
    if mode in ("training", "checkpointed"):
        model.train()
        model(ids, use_cache=False, **how).logits.sum().backward()
    else:
        with torch.no_grad() if mode == "no_grad" else torch.inference_mode():
            model(ids, use_cache=False, **how)
    assert (made["layouts"], made["jobs"]) == (1, 1)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_decoding_works_out_each_pattern_once(made, mode):
    """Five dropping patterns that take turns over ten layers."""
    attention = ";".join(f"{i}::5=window:{6 + i}" for i in range(5))
    model = lc.patch(build("llama", num_hidden_layers=10), attention=attention)
    with mode():
        cache = model(tokens(1, 40)).past_key_values
        made["reads"] = 0
        model(tokens(1, 1), past_key_values=cache)
    assert made["reads"] == 5


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_is_written_to_between_two_forwards_is_read_anew(mode):
    """Position ids and a mask of the caller's, changed in place; inference mode counts no versions."""
    model, ids = lc.patch(build("llama"), attention=STREAMING, backend="tiled"), tokens(1, 40)
    with mode():
        where = PACKED.clone()
        model(ids, position_ids=where, use_cache=False)
        where[:] = torch.arange(40)
        # No document begins at 25 any more.
        torch.testing.assert_close(
            model(ids, position_ids=where, use_cache=False).logits, model(ids, use_cache=False).logits
        )
        mask = torch.arange(40)[None, None, None].clone()
        model(ids, attention_mask=mask, position_ids=torch.arange(40)[None], use_cache=False)
        mask[..., :7] = -1
        mask[..., 7:] -= 7
        valid = (torch.arange(40) >= 7).long()[None]
        got, want = (
            model(ids, attention_mask=m, position_ids=torch.arange(40)[None], use_cache=False).logits[:, 7:]
            for m in (mask, valid)
        )
        torch.testing.assert_close(got, want)


def test_nothing_outlives_a_forward():
    """Tables of a decoding step are as large as the cache is long."""
    model, layouts, of = lc.patch(build("llama"), attention="strided:4,8"), [], Layout.of
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(Layout, "of", lambda *a, **k: layouts.append(weakref.ref(one := of(*a, **k))) or one)
        valid = torch.ones(2, 41, dtype=torch.long)
        valid[1, :5] = 0
        out = model(tokens(2, 40), attention_mask=valid[:, :40])
        out = model(tokens(2, 1), attention_mask=valid, past_key_values=out.past_key_values)
    gc.collect()
    assert layouts
    assert all(layout() is None for layout in layouts)
    assert not len(places._KNOWN)
    assert out.past_key_values.get_seq_length() == 41


@pytest.mark.parametrize(
    ("text", "padded"),
    [
        ("random:2,8+window:3", False),
        ("random:2,8+window:3", True),
        ("0=strided:2,2;*=window:12+global:2", False),
        ("0=heads(window:9|strided:4,6);*=window:12", True),
    ],
)
def test_decoding_waits_for_no_device_in_a_layer(text, padded):
    """A whole model on a GPU made of CPU memory: how often the host asks for a value does not grow with the layers.

    Without padding, tables or dropping to be done there is nothing to ask at all.
    """
    valid = torch.ones(2, 29, dtype=torch.long)
    valid[1, : 7 * padded] = 0
    ids, asked = tokens(2, 29), {}
    for layers in (2, 3):
        model = build("llama", num_hidden_layers=layers)
        with dense(model, parse(text), valid.bool()) if layers == 2 else torch.no_grad(), torch.no_grad():
            want = model(ids, attention_mask=valid, use_cache=False).logits if layers == 2 else None
        lc.patch(model, attention=text)
        with FarDevice(), torch.no_grad():
            _away(model)
            far, mask = ids.to(FAR), valid.to(FAR) if padded else None
            cache, asked[layers] = None, []
            for start, stop in ((0, 26), (26, 27), (27, 28), (28, 29)):
                WAITS.clear()
                told = None if mask is None else mask[:, :stop]
                out = model(far[:, start:stop], attention_mask=told, past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                asked[layers].append(len(WAITS))
        if want is not None:
            torch.testing.assert_close(out.logits.near, want[:, -1:], atol=1e-4, rtol=1e-4)
    assert asked[2][1:] == asked[3][1:]
    assert min(asked[3][1:]) <= (3 if padded else 0)


def _away(model):
    """Move a model to the far device, in place."""
    for module in model.modules():
        for name, x in module._parameters.items():
            module._parameters[name] = x if x is None else torch.nn.Parameter(Far(x.detach()), requires_grad=False)
        for name, x in module._buffers.items():
            module._buffers[name] = x if x is None else Far(x)
