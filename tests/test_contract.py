"""Every pattern x family x way of running: equal to the stock eager model given the pattern as a dense 4-D mask."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, StaticCache

import hf_longctx as lc
from families import FAMILIES, build, dense, padding, tokens
from hf_longctx.attention import BACKENDS, check_backend
from hf_longctx.patterns import Full, Global, Heads, Layers, SlidingWindow, gallery

LENGTH = 40
BATCH = 3

#: Every registered pattern (joined with a window where a row could see nothing, which eager attention cannot do), and
#: what patterns are made into.
PATTERNS = {name: pattern | SlidingWindow(1) for name, pattern in gallery()} | {
    "full": Full(),
    "window": SlidingWindow(6),
    "streaming": SlidingWindow(6) | Global(2),
    "heads": Heads([SlidingWindow(4), Full()]),
    "layers": Layers({"0,-1": Full(), "*": SlidingWindow(5) | Global(1)}),
    "some_layers": Layers({"1": SlidingWindow(4)}),
}
EVERYWHERE = [(p, f) for p in PATTERNS for f in FAMILIES]


def oracle(family: str, pattern, ids, mask):
    """Logits (B, L, V) of the stock eager model under dense masks."""
    model = build(family, attention="eager")
    with torch.no_grad(), dense(model, pattern, mask):
        return model(ids, attention_mask=mask, position_ids=positions(mask)).logits


def positions(mask):
    return (mask.cumsum(-1) - 1).clamp(min=0)


def check(logits, expected, mask):
    real = mask.bool()
    torch.testing.assert_close(logits[real], expected[real], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", ["none", "left", "right", "inner"])
@pytest.mark.parametrize(("name", "family"), EVERYWHERE)
def test_prefill(name, family, side):
    """One forward over padded rows."""
    ids, mask = tokens(BATCH, LENGTH), padding(side, BATCH, LENGTH)
    expected = oracle(family, PATTERNS[name], ids, mask)
    model = lc.patch(build(family), attention=PATTERNS[name])
    with torch.no_grad():
        check(model(ids, attention_mask=mask, position_ids=positions(mask)).logits, expected, mask)


@pytest.mark.parametrize("chunk", [1, 7])
@pytest.mark.parametrize(("name", "family"), EVERYWHERE)
def test_with_a_cache(name, family, chunk):
    """Token by token, and in chunks on a warm cache, with left padding."""
    ids, mask = tokens(2, LENGTH), padding("left", 2, LENGTH)
    expected = oracle(family, PATTERNS[name], ids, mask)
    model = lc.patch(build(family), attention=PATTERNS[name])
    cache, parts = DynamicCache(config=model.config), []
    with torch.no_grad():
        for start in range(0, LENGTH, chunk):
            stop = min(start + chunk, LENGTH)
            parts.append(
                model(
                    ids[:, start:stop],
                    attention_mask=mask[:, :stop],
                    position_ids=positions(mask)[:, start:stop],
                    past_key_values=cache,
                ).logits
            )
    check(torch.cat(parts, 1), expected, mask)


def usable(pattern, backend: str) -> bool:
    each = [p for _, p in pattern.plan] if isinstance(pattern, Layers) else [pattern]
    try:
        for one in each:
            check_backend(one, backend, device=torch.device("cpu"), dtype=torch.float32)
    except ValueError:
        return False
    return True


EXPLICIT = [(p, b) for p in PATTERNS for b in BACKENDS if b != "auto" and usable(PATTERNS[p], b)]


def test_the_engine_is_among_the_backends_tested():
    assert {("streaming", "tiled"), ("full", "tiled"), ("window", "tiled"), ("random", "reference")} <= set(EXPLICIT)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox"])
@pytest.mark.parametrize(("name", "backend"), EXPLICIT)
def test_every_backend(name, backend, family):
    """Each backend by name, padded on the left, in one prefill and in chunks on a warm cache."""
    ids, mask = tokens(2, LENGTH), padding("left", 2, LENGTH)
    expected = oracle(family, PATTERNS[name], ids, mask)
    model = lc.patch(build(family), attention=PATTERNS[name], backend=backend)
    for chunk in (LENGTH, 9):
        cache, parts = DynamicCache(config=model.config), []
        with torch.no_grad():
            for start in range(0, LENGTH, chunk):
                stop = min(start + chunk, LENGTH)
                step = {"position_ids": positions(mask)[:, start:stop], "past_key_values": cache}
                parts.append(model(ids[:, start:stop], attention_mask=mask[:, :stop], **step).logits)
        check(torch.cat(parts, 1), expected, mask)


@pytest.mark.parametrize("family", FAMILIES)
def test_static_cache(family):
    ids, mask = tokens(2, LENGTH), padding("left", 2, LENGTH)
    pattern = PATTERNS["streaming"]
    expected = oracle(family, pattern, ids, mask)
    model = lc.patch(build(family), attention=pattern)
    cache, parts = StaticCache(config=model.config, max_cache_len=LENGTH + 8), []
    with torch.no_grad():
        for start, stop in [(0, 5), (5, 30), *((i, i + 1) for i in range(30, LENGTH))]:
            step = {"position_ids": positions(mask)[:, start:stop], "past_key_values": cache}
            parts.append(model(ids[:, start:stop], attention_mask=mask[:, :stop], **step).logits)
    check(torch.cat(parts, 1), expected, mask)


@pytest.mark.parametrize("family", FAMILIES)
def test_full_is_stock(family):
    """Full() changes nothing: logits to 1e-5, the same tokens under every way to generate."""
    ids, mask = tokens(2, 20), padding("left", 2, 20)
    stock, model = build(family), lc.patch(build(family), attention=Full())
    with torch.no_grad():
        torch.testing.assert_close(
            model(ids, attention_mask=mask).logits[mask.bool()],
            stock(ids, attention_mask=mask).logits[mask.bool()],
            atol=1e-5,
            rtol=1e-5,
        )
    for how in (
        {},
        {"num_beams": 3},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 6},
        {"num_beams": 2, "num_return_sequences": 2},
        {"use_cache": False},
    ):
        how = {"max_new_tokens": 8, "do_sample": False, "disable_compile": True} | how
        assert torch.equal(
            model.generate(ids, attention_mask=mask, **how), stock.generate(ids, attention_mask=mask, **how)
        ), how


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_is_the_same_with_and_without_a_cache(family):
    ids, mask = tokens(2, 20), padding("left", 2, 20)
    model = lc.patch(build(family), attention=PATTERNS["streaming"])
    how = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "disable_compile": True}
    slow = model.generate(ids, use_cache=False, **how)
    assert torch.equal(model.generate(ids, **how), slow)
    assert torch.equal(model.generate(ids, cache_implementation="static", **how), slow)
    assert torch.equal(model.generate(ids, prefill_chunk_size=7, **how), slow)


@pytest.mark.parametrize("family", ["mistral", "gemma3", "qwen2"])
def test_replacing_a_models_own_window(family):
    """With own_windows="replace" the pattern reaches past the layer's window, and the cache keeps what it needs."""
    ids, mask = tokens(2, LENGTH), padding("left", 2, LENGTH)
    pattern = SlidingWindow(2 * 12) | Global(3)
    model = build(family, attention="eager")
    with torch.no_grad(), dense(model, pattern, mask, own_windows="replace"):
        expected = model(ids, attention_mask=mask, position_ids=positions(mask)).logits
    model = lc.patch(build(family), attention=pattern, own_windows="replace")
    parts, cache = [], DynamicCache(config=model.config)
    with torch.no_grad():
        for start in range(0, LENGTH, 8):
            stop = start + 8
            step = {"position_ids": positions(mask)[:, start:stop], "past_key_values": cache}
            parts.append(model(ids[:, start:stop], attention_mask=mask[:, :stop], **step).logits)
        check(torch.cat(parts, 1), expected, mask)
        cache = model(ids[:, :30], use_cache=True).past_key_values
        assert cache.layers[0].keys.shape[2] == 30
    with pytest.raises(ValueError, match="static cache"):
        model(ids, past_key_values=StaticCache(config=model.config, max_cache_len=64))


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_do_not_see_each_other(family):
    """Position ids that restart mean packed documents, each as if it were alone."""
    lengths = (9, 14, 17)
    ids = tokens(1, sum(lengths))
    model = lc.patch(build(family), attention=SlidingWindow(5) | Global(2))
    with torch.no_grad():
        restarts = torch.cat([torch.arange(n) for n in lengths])[None]
        packed = model(ids, position_ids=restarts, use_cache=False).logits
        alone = torch.cat([model(part).logits for part in ids.split(lengths, dim=1)], 1)
    torch.testing.assert_close(packed, alone, atol=1e-4, rtol=1e-4)


def test_positions_that_skip_ahead_are_one_document():
    """A jump forward in position ids (as in position-skipping training) is no new document."""
    ids, model = tokens(1, 20), build("llama")
    skipping = torch.cat([torch.arange(10), torch.arange(30, 40)])[None]
    with torch.no_grad():
        expected = model(ids, attention_mask=torch.ones_like(ids), position_ids=skipping).logits
        lc.patch(model, attention=Full())
        torch.testing.assert_close(model(ids, position_ids=skipping).logits, expected, atol=1e-4, rtol=1e-4)
