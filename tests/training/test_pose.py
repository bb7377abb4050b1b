"""Position skipping: ascending, within the window, every position and distance reached, and no new document."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hf_longctx as lc
from families import build, tokens
from hf_longctx.training.pose import skip_positions


@given(st.integers(1, 60), st.integers(0, 500), st.integers(2, 5), st.integers())
def test_order_and_bounds(length, more, chunks, seed):
    positions = skip_positions(length, length + more, random.Random(seed), chunks=chunks)
    assert len(positions) == length
    assert positions[0] == 0
    assert positions[-1] < length + more
    steps = [b - a for a, b in zip(positions, positions[1:])]
    assert all(step >= 1 for step in steps)
    assert sum(step > 1 for step in steps) <= chunks - 1


def test_coverage():
    """Over many sequences of 16, every position and every distance of a window of 64 occurs."""
    rng = random.Random(0)
    seen, distances = set(), set()
    for _ in range(3000):
        positions = skip_positions(16, 64, rng)
        seen.update(positions)
        distances.update(b - a for a in positions for b in positions if b > a)
    assert seen == set(range(64))
    assert distances == set(range(1, 64))


def test_the_last_position_is_spread_evenly():
    """The skip of two chunks is uniform: quarters of its range come equally often, within five deviations."""
    rng = random.Random(1)
    counts = [0] * 4
    for _ in range(4000):
        counts[(skip_positions(16, 116, rng)[-1] - 15) * 4 // 101] += 1
    assert max(abs(count - 1000) for count in counts) < 5 * (4000 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize(("arguments", "words"), [((8, 7), "do not fit"), ((8, 9), "at least 2 chunks")])
def test_what_cannot_be_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        skip_positions(*arguments, random.Random(0), chunks=2 if "fit" in words else 1)


def test_the_engine_sees_one_document():
    """Under the engine a skip moves RoPE alone: the same as eager attention that is told of no packing."""
    ids = tokens(1, 24)
    positions = torch.tensor([skip_positions(24, 100, random.Random(5))])
    assert (positions.diff() > 1).any()
    with torch.no_grad():
        stock = lc.patch(build("llama", attention="eager"), rope="yarn:2")
        everything = torch.ones_like(ids)  # a mask, so that transformers looks for no packed documents
        expected = stock(ids, position_ids=positions, attention_mask=everything, use_cache=False).logits
        model = lc.patch(build("llama"), rope="yarn:2", attention="full")
        found = model(ids, position_ids=positions, use_cache=False).logits
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        # transformers alone takes the jump for a new document: the reason why position skipping needs the engine.
        assert (stock(ids, position_ids=positions, use_cache=False).logits - expected).abs().max() > 1e-3
