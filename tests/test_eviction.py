"""The cache layer by itself: what it keeps, what it drops, what it refuses. Keys hold their own slot numbers."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicCache

from hf_longctx.hf.eviction import EvictingLayer, columns, most_columns, room
from hf_longctx.hf.places import Places
from hf_longctx.patterns import (
    Block,
    Dilated,
    Fixed,
    Full,
    Global,
    Heads,
    Pattern,
    Segment,
    SlidingWindow,
    Strided,
    gallery,
)
from hf_longctx.patterns.retention import most_kept

DROPPING = {
    "window": SlidingWindow(6),
    "window of one": SlidingWindow(1),
    "streaming": SlidingWindow(5) | Global(2),
    "dilated": Dilated(4, 3),
    "block": Block(7, previous=1),
    "block and sinks": Block(4) | Global(3) | SlidingWindow(2),
    "heads": Heads([SlidingWindow(4), Dilated(2, 5)]),
    "strided through a window": Strided(3, 3).within(10),
}
KEEPING = {"full": Full(), "strided": Strided(3, 3), "some heads": Heads([SlidingWindow(4), Full()])}


def feed(layer: EvictingLayer, count: int, mask: torch.Tensor | None = None) -> torch.Tensor:
    """One forward of `count` tokens, whose keys are their slot numbers; the slots that the attention is given."""
    slots = torch.arange(layer.seen, layer.seen + count)
    new = slots.float()[None, None, :, None].expand(1 if mask is None else len(mask), 1, -1, 1)
    layer.open()
    keys, values = layer.update(new, -new)
    positions = torch.arange(layer.seen)[None] if mask is None else mask[:, : layer.seen]
    places = Places(positions)
    assert torch.equal(layer.positions(places), positions[:, keys[0, 0, :, 0].long()])
    assert torch.equal(keys, -values)
    given = keys[0, 0, :, 0].long()
    layer.settle(places)
    assert torch.equal(layer.keys[0, 0, :, 0].long(), layer.slots)
    return given


@cache
def seen_by(pattern: Pattern, q: int) -> frozenset[int]:
    """The keys that a query may see."""
    k = torch.arange(q + 1)
    heads = range(len(pattern.entries)) if isinstance(pattern, Heads) else range(1)
    return frozenset(i for h in heads for i in k[pattern.allows(torch.tensor([q]), k, head=h).expand(q + 1)].tolist())


@pytest.mark.parametrize("name", DROPPING)
@given(chunks=st.lists(st.integers(1, 19), min_size=1, max_size=20))
@settings(max_examples=40, deadline=None)
def test_every_query_is_given_what_it_sees_and_the_buffers_stay_small(name, chunks):
    pattern = DROPPING[name]
    layer, most = EvictingLayer(pattern), most_columns(pattern)
    for count in chunks:
        start, got = layer.seen, set(feed(layer, count).tolist())
        for q in range(start, start + count):
            assert seen_by(pattern, q) <= got
        assert layer.get_seq_length() == start + count == layer.seen
        held = layer.keys.untyped_storage().nbytes() // 4
        assert len(layer.slots) <= held == columns(layer.seen, most) <= most


@pytest.mark.parametrize("name", DROPPING)
def test_the_bound_is_what_the_pattern_needs_and_a_little_more(name):
    """The most keys that later queries see, counted one by one."""
    pattern, horizon = DROPPING[name], 120
    sees = [seen_by(pattern, q) for q in range(horizon)]
    needed = max(len({k for q in range(now, horizon) for k in sees[q] if k < now}) for now in range(60))
    # `keeps` may be less sharp than the rule: a comb keeps the keys between its teeth for the queries between.
    assert needed <= most_kept(pattern) <= needed + 1
    assert most_kept(pattern) + 1 <= most_columns(pattern) <= 1.3 * most_kept(pattern) + 2


@pytest.mark.parametrize("name", KEEPING)
def test_a_pattern_that_keeps_all_has_no_bound(name):
    assert most_kept(KEEPING[name]) is None
    with pytest.raises(ValueError, match="drops no key"):
        EvictingLayer(KEEPING[name])


def test_which_patterns_drop():
    """Of the registered ones: those whose rows end at some distance, and the first tokens."""
    assert {n for n, p in gallery() if most_kept(p)} >= {"window", "dilated", "block", "global"}
    assert {n for n, p in gallery() if most_kept(p) is None} >= {"full", "strided", "random"}


@given(st.integers(0, 1 << 20))
@settings(deadline=None)
def test_room_is_never_more_than_an_eighth_too_much(n):
    assert n <= room(n) <= n + n // 8 + 1
    assert room(room(n)) == room(n)


def test_decoding_seldom_moves_the_buffers():
    layer, moves = EvictingLayer(SlidingWindow(64)), 0
    feed(layer, 200)
    for _ in range(400):
        before = layer._buffers
        feed(layer, 1)
        moves += layer._buffers is not before
    assert moves <= 400 / 8


def test_padding_shifts_no_row():
    """Rows padded differently: a key stays while any row may see it, sinks of a padded row included."""
    mask = torch.ones(3, 60, dtype=torch.long)
    mask[1, :9], mask[2, 20:25] = 0, 0
    positions = torch.where(mask.bool(), mask.cumsum(-1) - 1, -1)
    pattern = SlidingWindow(4) | Global(2)
    layer = EvictingLayer(pattern)
    for start in range(0, 60, 3):
        given = feed(layer, 3, positions)
        for row in positions:
            for q in row[start : start + 3][row[start : start + 3] >= 0].tolist():
                assert seen_by(pattern, q) <= set(row[given].tolist())
    assert len(layer.slots) <= 3 * most_columns(pattern)


# ---------------------------------------------------------------------- taking back, copying, rows


@given(first=st.integers(1, 40), more=st.lists(st.integers(1, 5), min_size=1, max_size=6), data=st.data())
@settings(deadline=None)
def test_recorded_tokens_can_be_taken_back(first, more, data):
    """After `activate_past_recording`, what was fed since can be cropped, as if it had never been."""
    pattern = DROPPING["streaming"]
    layer = EvictingLayer(pattern)
    feed(layer, first)
    layer.activate_past_recording()
    for _ in range(4):
        for count in more:
            feed(layer, count)
        layer.crop(-data.draw(st.integers(0, sum(more))))
        for q in range(layer.seen, layer.seen + 12):
            assert {k for k in seen_by(pattern, q) if k < layer.seen} <= set(layer.slots.tolist())
    assert len(layer.slots) <= most_columns(pattern) + sum(more)


def test_what_was_dropped_cannot_be_taken_back():
    layer = EvictingLayer(SlidingWindow(6))
    feed(layer, 4)
    layer.crop(-1)
    assert (layer.seen, layer.slots.tolist()) == (3, [0, 1, 2])
    feed(layer, 30)
    feed(layer, 1)
    layer.crop(0)
    layer.crop(-1)
    with pytest.raises(ValueError, match="cannot crop the cache from 33 to 32 tokens.*activate_past_recording"):
        layer.crop(-1)
    with pytest.raises(ValueError, match="tokens_to_remove is 5"):
        layer.crop(5)
    assert layer.seen == 33


def test_rows_are_reordered_repeated_and_chosen():
    layer = EvictingLayer(SlidingWindow(6))
    layer.open()
    rows = torch.arange(3.0)[:, None, None, None].expand(3, 2, 20, 4)
    layer.update(rows, rows)
    layer.settle(Places(torch.arange(20)[None]))
    layer.reorder_cache(torch.tensor([2, 0, 2]))
    assert layer.keys[:, 0, 0, 0].tolist() == [2, 0, 2]
    layer.batch_repeat_interleave(2)
    assert layer.values[:, 1, -1, 3].tolist() == [2, 2, 0, 0, 2, 2]
    layer.batch_select_indices(torch.tensor([1, 2]))
    assert layer.keys[:, 0, 0, 0].tolist() == [2, 0]
    layer.open()
    keys, _ = layer.update(rows[:2, :, :1] + 7, rows[:2, :, :1])
    assert keys[:, 0, -1, 0].tolist() == [7, 8]


@pytest.mark.parametrize("pattern", [Segment(6, 4) | SlidingWindow(1), Fixed(8, 2).within(12), Block(7)], ids=str)
def test_tokens_that_may_be_taken_back_are_not_dropped(pattern):
    """Their keys are for queries to come, in blocks and segments that had not begun when the last token was sure."""
    layer = EvictingLayer(pattern)
    layer.activate_past_recording()
    feed(layer, 5)
    layer.crop(0)
    for _ in range(40):
        feed(layer, 9)
        layer.crop(-3)
        given = set(feed(layer, 1).tolist())
        assert seen_by(pattern, layer.seen - 1) <= given
        layer.crop(0)


def test_a_copy_is_independent():
    layer = EvictingLayer(SlidingWindow(6))
    feed(layer, 20)
    copied, before = copy.deepcopy(layer), layer.keys.clone()
    feed(copied, 3)
    assert torch.equal(layer.keys, before)
    assert (layer.seen, copied.seen) == (20, 23)
    assert copied.keys.data_ptr() != layer.keys.data_ptr()


def test_reset_forgets_all():
    layer = EvictingLayer(SlidingWindow(6))
    feed(layer, 20)
    layer.reset()
    assert (layer.seen, layer.keys, layer.get_mask_sizes(3)) == (0, None, (3, 0))
    assert feed(layer, 3).tolist() == [0, 1, 2]


def test_a_layer_in_a_cache_of_transformers():
    cache = DynamicCache()
    cache.layers = [EvictingLayer(SlidingWindow(6))]
    feed(cache.layers[0], 20)
    assert cache.get_seq_length() == 20
    assert cache.get_mask_sizes(2, 0) == (22, 0)
    assert cache.is_croppable
    assert not cache.is_compileable
    assert cache.get_max_length() == -1


# ---------------------------------------------------------------------- refusals and modes


def test_an_update_outside_a_patched_forward_is_refused():
    layer = EvictingLayer(SlidingWindow(6))
    feed(layer, 20)
    with pytest.raises(ValueError, match="no such pattern: start with an empty cache"):
        layer.update(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1))


def test_a_mask_that_is_too_short_is_refused():
    layer = EvictingLayer(SlidingWindow(6))
    layer.open()
    layer.update(torch.ones(1, 1, 20, 1), torch.ones(1, 1, 20, 1))
    with pytest.raises(ValueError, match="has seen 20 tokens, but the mask is for 7"):
        layer.positions(Places(torch.arange(7)[None]))


def test_gradients_flow_through_stored_keys():
    """Chunks under autograd: nothing is written into a tensor that backward needs."""
    layer = EvictingLayer(SlidingWindow(3))
    x = torch.randn(1, 1, 12, 4, requires_grad=True)
    total = x.new_zeros(())
    for i in range(12):
        layer.open()
        keys, values = layer.update(x[:, :, i : i + 1], x[:, :, i : i + 1] * 2)
        total = total + (keys[:, :, -3:] * values[:, :, -3:]).sum()
        layer.settle(Places(torch.arange(layer.seen)[None]))
    total.backward()
    times = torch.tensor([3.0] * 10 + [2.0, 1.0])[None, None, :, None]
    torch.testing.assert_close(x.grad, 4 * x.detach() * times)


def test_a_cache_filled_in_inference_mode_goes_on_outside():
    layer = EvictingLayer(SlidingWindow(6))
    with torch.inference_mode():
        feed(layer, 20)
    feed(layer, 1)
    assert layer.slots.tolist()[-1] == 20
