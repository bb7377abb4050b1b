"""Caches that drop keys, in models: every family and way to generate, equal to computing all afresh."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer

import hf_longctx as lc
from families import FAMILIES, WINDOW, build, dense, padding, tokens
from hf_longctx.hf.eviction import EvictingLayer, columns
from hf_longctx.measure.probe import clone_cache
from hf_longctx.patterns import Block, Dilated, Fixed, Full, Global, Heads, Layers, Random, SlidingWindow, Strided
from pairs import pairwise

LENGTH = 40
STREAMING = SlidingWindow(5) | Global(2)
PATTERNS = {
    "streaming": STREAMING,
    "window": SlidingWindow(6),
    "dilated": Dilated(3, 2),
    "block": Block(4, 1) | Global(1),
    "heads": Heads([SlidingWindow(4), Block(3, 1)]),
    "by layer": Layers({"0,-1": Full(), "*": STREAMING}),
    "one layer": Layers({"1": SlidingWindow(4)}),
    "strided": Strided(4, 4),
}
GREEDY = {"do_sample": False, "disable_compile": True}


def nbytes(cache) -> int:
    """Bytes of all that a cache holds on to, each storage once, as far as its views reach where they are views."""
    total = 0
    for layer in cache.layers:
        tensors = layer._buffers if isinstance(layer, EvictingLayer) else (layer.keys, layer.values)
        total += sum(t.nbytes for t in tensors)
    return total


def last_logits(model, ids, **how):
    with torch.no_grad():
        return model(ids, **how).logits[:, -1]


#: There is something to replace where a family has windows of its own.
OWN_WINDOWS = [(family, "intersect") for family in FAMILIES]
OWN_WINDOWS += [(name, "replace") for name, (config, _) in FAMILIES.items() if getattr(config(), "sliding_window", 0)]


@pytest.mark.parametrize(
    ("name", "family", "own_windows"), pairwise(rows=[(name, *own) for name in PATTERNS for own in OWN_WINDOWS])
)
def test_the_cache_holds_what_describe_says(name, family, own_windows):
    """Fed in pieces: no layer holds more than its bound, bytes are those of `describe`, and logits are exact."""
    model = lc.patch(build(family), attention=PATTERNS[name], own_windows=own_windows)
    shown, ids = lc.describe(model), tokens(1, LENGTH)
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        cache = None
        for start, stop in [(0, 9), (9, 10), (10, 34), *((i, i + 1) for i in range(34, LENGTH))]:
            out = model(ids[:, start:stop], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            torch.testing.assert_close(out.logits, whole[:, start:stop], atol=1e-4, rtol=1e-4)
            assert cache.get_seq_length() == stop
            assert nbytes(cache) == shown.cache_bytes(stop)
    for described, layer in zip(shown.layers, cache.layers):
        if described.cache_keys is None:
            assert type(layer) is DynamicLayer
            assert layer.keys.shape[2] == LENGTH
        else:
            assert layer.keys.shape[2] <= described.cache_keys < LENGTH
            assert columns(LENGTH, described.cache_keys) == described.cache_keys


def test_a_sliding_layer_drops_by_its_own_window_too():
    """Gemma 3 mixes layers: its sliding ones are bounded by their window whatever pattern they are given."""
    model = lc.patch(build("gemma3"), attention=Layers({"*": Strided(4, 4)}))
    kept = [layer.cache_keys for layer in lc.describe(model).layers]
    assert kept[1] is None
    assert WINDOW // 2 < kept[0] == kept[2] <= WINDOW + 2
    replaced = lc.patch(build("gemma3"), attention=Strided(4, 4), own_windows="replace")
    assert [layer.cache_keys for layer in lc.describe(replaced).layers] == [None] * 3


def test_describe_of_a_stock_model_counts_transformers_cache():
    """What transformers' own sliding layers keep: the window less the query."""
    shown = lc.describe(build("gemma3"))
    assert [layer.cache_keys for layer in shown.layers] == [WINDOW - 1, None, WINDOW - 1]
    assert shown.cache_bytes(LENGTH) == (2 * (WINDOW - 1) + LENGTH) * shown.layers[0].kv_bytes
    assert "all keys" in str(shown)
    with pytest.raises(ValueError, match="tokens is -1"):
        shown.cache_bytes(-1)


WAYS = {
    "beams": {"num_beams": 3},
    "returned beams": {"num_beams": 3, "num_return_sequences": 2},
    "prefill in chunks": {"prefill_chunk_size": 7},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "static cache": {"cache_implementation": "static"},
}
#: Patterns under which no key, or not every layer's, can be dropped.
KEEPING = {
    "strided": Strided(4, 4),
    "random": Random(2, 4) | SlidingWindow(3),
    "fixed": Fixed(4, 1),
    "by layer": PATTERNS["by layer"],
}


@pytest.mark.parametrize(
    ("family", "name"), [*((family, "streaming") for family in FAMILIES), *(("llama", name) for name in KEEPING)]
)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_generate(way, family, name):
    """The same tokens as without a cache; rows padded on the left where the way allows a batch."""
    rows = 1 if way == "prompt lookup" else 2
    ids, mask = tokens(rows, 20), padding("left", rows, 20)
    model = lc.patch(build(family), attention=KEEPING.get(name, STREAMING))
    how = GREEDY | {"attention_mask": mask, "max_new_tokens": 8, "return_dict_in_generate": True}
    plain = {k: v for k, v in WAYS[way].items() if k.startswith("num")}
    expected = model.generate(ids, use_cache=False, **how, **plain).sequences
    got = model.generate(ids, **how, **WAYS[way])
    assert torch.equal(got.sequences, expected)
    if name != "streaming" or way == "static cache":
        return
    assert all(isinstance(layer, EvictingLayer) for layer in got.past_key_values.layers)
    if way != "prompt lookup":  # which keeps a little more, until it knows what is accepted
        assert max(layer.keys.shape[2] for layer in got.past_key_values.layers) < 20


@pytest.mark.parametrize("own", [False, True])
def test_sampled_rows_of_one_prompt(own):
    """num_return_sequences repeats the prompt's rows; a user's empty cache is used and filled likewise."""
    model, ids = lc.patch(build("llama"), attention=STREAMING), tokens(1, 20)
    how = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 12}
    torch.manual_seed(3)
    expected = model.generate(ids, use_cache=False, **how)
    torch.manual_seed(3)
    extra = {"past_key_values": DynamicCache(config=model.config)} if own else {}
    assert torch.equal(model.generate(ids, **how, **extra), expected)
    if own:
        assert extra["past_key_values"].layers[0].keys.shape[2] < 10


@pytest.mark.parametrize("helper", ["stock", "patched"])
def test_assisted_decoding(helper):
    """A helper model proposes, the cache takes back what is refused; with the helper's own cache dropping keys too."""
    model, ids = lc.patch(build("llama"), attention=STREAMING), tokens(1, 20)
    other = build("llama", seed=3) if helper == "stock" else lc.patch(build("llama"), attention=SlidingWindow(4))
    how = GREEDY | {"max_new_tokens": 20}
    assert torch.equal(model.generate(ids, assistant_model=other, **how), model.generate(ids, use_cache=False, **how))


@pytest.mark.parametrize("name", ["streaming", *KEEPING])
@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
def test_several_turns_with_one_cache(name, kind):
    family = "llama" if kind is StaticCache else "qwen3"
    model = lc.patch(build(family), attention=KEEPING.get(name, STREAMING))
    static = {"max_cache_len": 60} if kind is StaticCache else {}
    ids, cache = tokens(2, 12), kind(config=model.config, **static)
    for turn in range(3):
        how = GREEDY | {"max_new_tokens": 4}
        out = model.generate(ids, past_key_values=cache, **how)
        assert torch.equal(out, model.generate(ids, use_cache=False, **how))
        ids = torch.cat([out, tokens(2, 5, seed=turn)], 1)
    if name == "streaming" and not static:
        assert cache.layers[0].keys.shape[2] < 10


# ---------------------------------------------------------------------- whose cache it is


def test_a_cache_made_without_a_config_keeps_everything():
    model, ids, cache = lc.patch(build("llama"), attention=STREAMING), tokens(1, LENGTH), DynamicCache()
    expected = last_logits(model, ids, use_cache=False)
    last_logits(model, ids[:, :-1], past_key_values=cache)
    torch.testing.assert_close(last_logits(model, ids[:, -1:], past_key_values=cache), expected, atol=1e-4, rtol=1e-4)
    assert [layer.keys.shape[2] for layer in cache.layers] == [LENGTH] * 3


def test_a_full_cache_goes_on_as_it_is():
    """One filled before the model was patched keeps its layers."""
    model, ids = build("llama"), tokens(1, LENGTH)
    cache = DynamicCache(config=model.config)
    last_logits(model, ids[:, :20], past_key_values=cache)
    lc.patch(model, attention=STREAMING)
    last_logits(model, ids[:, 20:], past_key_values=cache)
    assert [(type(layer), layer.keys.shape[2]) for layer in cache.layers] == [(DynamicLayer, LENGTH)] * 3


def test_a_static_cache_keeps_everything():
    model, ids = lc.patch(build("llama"), attention=STREAMING), tokens(1, LENGTH)
    cache = StaticCache(config=model.config, max_cache_len=LENGTH)
    last_logits(model, ids, past_key_values=cache)
    assert cache.layers[0].keys.shape[2] == LENGTH
    assert not any(isinstance(layer, EvictingLayer) for layer in cache.layers)


def test_an_emptied_cache_follows_the_plan_of_the_day():
    model, ids = lc.patch(build("llama"), attention=SlidingWindow(4)), tokens(1, LENGTH)
    cache = DynamicCache(config=model.config)
    last_logits(model, ids, past_key_values=cache)
    cache.reset()
    lc.patch(lc.unpatch(model), attention=SlidingWindow(9))
    got = last_logits(model, ids[:, :-1], past_key_values=cache)
    assert got.isfinite().all()
    expected = last_logits(model, ids, use_cache=False)
    torch.testing.assert_close(last_logits(model, ids[:, -1:], past_key_values=cache), expected, atol=1e-4, rtol=1e-4)


def test_another_pattern_or_no_patch_refuses_a_cache_that_has_dropped_keys():
    model, ids = lc.patch(build("llama"), attention=SlidingWindow(4)), tokens(1, LENGTH)
    cache = DynamicCache(config=model.config)
    last_logits(model, ids, past_key_values=cache)
    lc.unpatch(model)
    with pytest.raises(ValueError, match="window:4, but the model that uses it has no such pattern"):
        last_logits(model, ids[:, :1], past_key_values=copy.deepcopy(cache))
    lc.patch(model, attention=SlidingWindow(9))
    with pytest.raises(ValueError, match="drops keys under window:4, but the model computes window:9"):
        last_logits(model, ids[:, :1], past_key_values=cache)


def test_an_attention_mask_for_the_new_tokens_only_is_no_mask_for_the_cache():
    """Padding in the cache needs the full mask, with a cache that drops keys as with any other."""
    ids, mask = tokens(2, LENGTH), padding("left", 2, LENGTH)
    model = lc.patch(build("llama"), attention=STREAMING)
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    expected = last_logits(model, ids, attention_mask=mask, position_ids=places, use_cache=False)
    cache = DynamicCache(config=model.config)
    last_logits(model, ids[:, :30], attention_mask=mask[:, :30], position_ids=places[:, :30], past_key_values=cache)
    step = {"attention_mask": mask, "position_ids": places[:, 30:], "past_key_values": cache}
    torch.testing.assert_close(last_logits(model, ids[:, 30:], **step), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("copied", [copy.deepcopy, clone_cache])
def test_copies_of_a_cache_go_their_own_ways(copied):
    model, ids = lc.patch(build("gemma3"), attention=PATTERNS["by layer"]), tokens(1, LENGTH)
    expected = last_logits(model, ids, use_cache=False)
    cache = DynamicCache(config=model.config)
    last_logits(model, ids[:, :-1], past_key_values=cache)
    other = copied(cache)
    for _ in range(9):
        last_logits(model, ids[:, :1] + 1, past_key_values=other)
    torch.testing.assert_close(last_logits(model, ids[:, -1:], past_key_values=cache), expected, atol=1e-4, rtol=1e-4)
    assert (cache.get_seq_length(), other.get_seq_length()) == (LENGTH, LENGTH + 8)


def test_rope_that_depends_on_the_length_stays_with_the_cache():
    model = lc.patch(build("llama"), attention=STREAMING, rope="dynamic:1")
    ids, how = tokens(1, 60), GREEDY | {"max_new_tokens": 20, "return_dict_in_generate": True}
    got = model.generate(ids, **how)
    assert torch.equal(got.sequences, model.generate(ids, use_cache=False, **how).sequences)
    assert isinstance(got.past_key_values.layers[0], EvictingLayer)
    assert got.past_key_values.longctx_length == 80


def test_inner_padding_and_a_batch_chosen_by_rows():
    """Rows with holes at different places; rows are dropped and repeated between forwards."""
    ids, mask = tokens(3, LENGTH), padding("inner", 3, LENGTH)
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    model = lc.patch(build("llama"), attention=STREAMING)
    rows = torch.tensor([2, 0])
    stock = build("llama", attention="eager")
    with torch.no_grad(), dense(stock, STREAMING, mask[rows]):
        expected = stock(ids[rows], attention_mask=mask[rows], position_ids=places[rows]).logits[:, 30:]
        cache = model(ids[:, :30], attention_mask=mask[:, :30], position_ids=places[:, :30]).past_key_values
        cache.batch_select_indices(rows)
        step = {"attention_mask": mask[rows], "position_ids": places[rows, 30:], "past_key_values": cache}
        got = model(ids[rows, 30:], **step).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", PATTERNS)
def test_candidates_are_tried_in_copies_of_the_cache(name):
    """The loop of contrastive search, which transformers keeps on the hub: repeat rows, try each, keep the chosen."""
    candidates = 3
    model, ids = lc.patch(build("llama"), attention=PATTERNS[name]), tokens(2, 12)
    with torch.no_grad():
        out = model(ids, use_cache=True)
    for step in range(10):
        tried = out.logits[:, -1].topk(candidates).indices.reshape(-1, 1)
        out.past_key_values.batch_repeat_interleave(candidates)
        with torch.no_grad():
            out = model(tried, past_key_values=out.past_key_values)
        chosen = torch.arange(2) * candidates + step % candidates
        ids = torch.cat([ids, tried[chosen]], dim=1)
        out.past_key_values.batch_select_indices(chosen)
        out.logits = out.logits[chosen]
        expected = last_logits(model, ids, use_cache=False)
        torch.testing.assert_close(out.logits[:, -1], expected, atol=1e-4, rtol=1e-4)


def test_contrastive_search_says_what_it_needs_as_on_a_stock_model():
    for model in (build("llama"), lc.patch(build("llama"), attention=STREAMING)):
        with pytest.raises(ValueError, match="trust_remote_code"):
            model.generate(tokens(1, 8), penalty_alpha=0.6, top_k=4, **GREEDY)


class Counting(DynamicCache):
    """A cache of the user's own class, which keeps its own kinds of layers."""


@pytest.mark.parametrize("family", ["mistral", "gemma3", "qwen3"])
def test_padding_between_tokens_under_a_window_of_the_models_own(family):
    """A row ended its turn early. A cache that drops keys by slot has lost some that the window still shows."""
    ids, mask = tokens(2, 60), torch.ones(2, 60, dtype=torch.long)
    mask[1, 20:28] = 0
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    model = lc.patch(build(family), attention="full")

    def read(cache):
        outs, stop = [], 30
        for start in (0, *range(30, 60)):
            cut = {"attention_mask": mask[:, :stop], "position_ids": places[:, start:stop], "past_key_values": cache}
            outs.append(model(ids[:, start:stop], **cut).logits)
            stop += 1
        return torch.cat(outs, 1)

    with torch.no_grad():
        wanted = model(ids, attention_mask=mask, position_ids=places, use_cache=False).logits
        for cache in (DynamicCache(config=model.config), Counting(config=model.config)):
            torch.testing.assert_close(read(cache)[mask.bool()], wanted[mask.bool()], atol=1e-4, rtol=1e-4)
        with pytest.raises(ValueError, match=r"window of its own of \d+ tokens.*use the dynamic cache"):
            read(StaticCache(config=model.config, max_cache_len=70))
