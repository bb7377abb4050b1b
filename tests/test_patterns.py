"""Patterns as definitions: meaning, counts, reach, eviction and text, each against brute force."""

from __future__ import annotations

import math
import shutil
import textwrap
from dataclasses import dataclass
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import fresh
import hf_longctx
from hf_longctx import patterns
from hf_longctx.attention import attend
from hf_longctx.patterns import (
    Block,
    Dilated,
    Fixed,
    Full,
    Global,
    Heads,
    Layers,
    Pattern,
    Random,
    Segment,
    SlidingWindow,
    Strided,
    gallery,
    parse,
    presets,
    reach_through,
)
from hf_longctx.patterns.layers import select
from hf_longctx.patterns.presets import PRESETS

small = st.integers(1, 9)
single = st.one_of(
    st.just(Full()),
    st.builds(SlidingWindow, small),
    st.builds(Global, small),
    st.builds(Dilated, small, small),
    st.builds(Strided, small, small),
    st.builds(Block, small, st.integers(0, 3)),
    st.builds(Random, small, small, seed=st.integers(0, 5)),
    st.builds(Fixed, st.integers(4, 12), st.integers(1, 4)),
    st.builds(Segment, small, small),
)
union = st.lists(single, min_size=1, max_size=3).map(lambda ps: patterns.Union.of(*ps))
windowed = st.builds(lambda p, w: p.within(w), union, small)
pattern = st.one_of(single, union, windowed)
bounded = st.lists(
    st.one_of(
        st.builds(SlidingWindow, small),
        st.builds(Global, small),
        st.builds(Dilated, small, small),
        st.builds(Block, st.integers(1, 6), st.integers(0, 2)),
    ),
    min_size=1,
    max_size=2,
).map(lambda ps: patterns.Union.of(*ps))


def visible(p: Pattern, n: int, layer: int = 0, head: int = 0) -> torch.Tensor:
    i = torch.arange(n)
    return p.allows(i[:, None], i[None, :], layer=layer, head=head).expand(n, n) & (i[None, :] <= i[:, None])


@pytest.mark.parametrize(
    ("p", "rule"),
    [
        (Full(), lambda q, k, d: True),
        (SlidingWindow(5), lambda q, k, d: d < 5),
        (Global(3), lambda q, k, d: k < 3),
        (Dilated(3, 4), lambda q, k, d: d % 4 == 0 and d < 12),
        (Strided(2, 5), lambda q, k, d: d < 2 or d % 5 == 0),
        (Fixed(6, 2), lambda q, k, d: q // 6 == k // 6 or k % 6 >= 4),
        (Segment(9, 2), lambda q, k, d: q // 9 == k // 9 and d % 2 == 0),
        (Block(6), lambda q, k, d: q // 6 == k // 6),
        (Block(4, previous=2), lambda q, k, d: q // 4 - k // 4 <= 2),
        (SlidingWindow(3) | Global(2), lambda q, k, d: d < 3 or k < 2),
    ],
)
def test_meaning(p, rule):
    expected = [[k <= q and rule(q, k, q - k) for k in range(40)] for q in range(40)]
    assert visible(p, 40).tolist() == expected


@settings(max_examples=150, deadline=None)
@given(blocks=small, size=small, seed=st.integers(0, 9), layer=st.integers(0, 3), head=st.integers(0, 3))
def test_random_draws_earlier_blocks_without_replacement(blocks, size, seed, layer, head):
    p = Random(blocks, size, seed=seed)
    drawn = p.draws(torch.arange(30), layer=layer, head=head)
    for block, row in enumerate(drawn.tolist()):
        chosen = [b for b in row if b >= 0]
        assert len(chosen) == len(set(chosen)) == min(blocks, block)
        assert all(0 <= b < block for b in chosen)
        # A pure function: one block asked alone, or with others, draws the same.
        alone = p.draws(torch.tensor(block), layer=layer, head=head).tolist()
        assert sorted(b for b in alone if b >= 0) == sorted(chosen)


def test_random_differs_by_seed_layer_and_head_and_is_fair():
    block = torch.arange(3, 400)
    base = Random(3, 64).draws(block)
    for other in (
        Random(3, 64, seed=1).draws(block),
        Random(3, 64).draws(block, layer=1),
        Random(3, 64).draws(block, head=1),
    ):
        assert (base != other).float().mean() > 0.5
    # The drawn blocks spread evenly over the earlier ones: mean of (drawn / candidates) is one half.
    spread = (base.float() / (block[:, None] - 1)).mean()
    assert abs(float(spread) - 0.5) < 0.03


@settings(max_examples=200, deadline=None)
@given(p=pattern, n=st.integers(1, 60), layer=st.integers(0, 2), head=st.integers(0, 2))
def test_count_is_the_number_of_visible_pairs(p, n, layer, head):
    assert p.count(n, layer=layer, head=head) == int(visible(p, n, layer, head).sum())


def test_count_of_a_million_tokens_takes_no_square():
    p = SlidingWindow(1024) | Global(4) | Dilated(64, 128)
    n = 1_000_000
    assert p.count(n) < 1100 * n
    assert Full().count(n) == n * (n + 1) // 2


@settings(max_examples=120, deadline=None)
@given(p=bounded, layers=st.integers(1, 3))
def test_reach_is_the_farthest_that_information_travels(p, layers):
    """Against the closure of the visibility graph, started far enough from the beginning for sinks not to matter."""
    members = p.members if isinstance(p, patterns.Union) else (p,)
    moving = [m for m in members if not isinstance(m, Global)]  # sinks are left out
    n = 160 * layers + 40
    step = torch.eye(n, dtype=torch.bool)
    if moving:
        step = step | visible(patterns.Union.of(*moving), n)
    reached = step.float()
    for _ in range(layers - 1):
        reached = ((reached @ step.float()) > 0).float()
    farthest = max(q - int(reached[q].nonzero()[0]) for q in range(n // 2, n))
    assert p.reach(layers) == farthest


@pytest.mark.parametrize("p", [Full(), Strided(2, 4), Random(2, 4), Fixed(4, 1), SlidingWindow(4) | Full()])
def test_reach_is_infinite_where_unbounded(p):
    assert math.isinf(p.reach(1))


def test_reach_of_segments_ends_with_the_segment():
    assert Segment(8, 1).reach(3) == Block(8).reach(3) == 7
    assert Segment(8, 3).reach(3) == reach_through([Segment(8, 3)] * 3) == 6
    assert Segment(4, 8).reach(5) == 0
    assert Segment(8, 3).reach(0) == 0


def test_a_subclass_with_a_rule_of_its_own_takes_nothing_from_its_parent():
    @dataclass(frozen=True)
    class Even(SlidingWindow, name=None):
        def allows(self, q, k, *, layer=0, head=0):
            return super().allows(q, k) & ((q - k) % 2 == 0)

    assert Even(8).count(40) == int(visible(Even(8), 40).sum()) < SlidingWindow(8).count(40)
    assert Even(8).rows(torch.arange(3)) is None
    assert Even(8).pieces() is None
    assert bool(Even(8).keeps(0, 100))
    q, k, v = torch.randn(3, 1, 2, 300, 8)
    expected = attend(q, k, v, Even(64), backend="reference")
    torch.testing.assert_close(attend(q, k, v, Even(64), backend="tiled"), expected)
    torch.testing.assert_close(attend(q[:, :, -1:], k, v, Even(64)), expected[:, :, -1:])


def test_patterns_that_hold_tensors_are_joined_and_spread():
    """Nothing says whether two of them are equal, so they count as different."""

    @dataclass(frozen=True)
    class Table(Pattern, name=None):
        table: torch.Tensor

        def allows(self, q, k, *, layer=0, head=0):
            return self.table[k % len(self.table)].expand(torch.broadcast_shapes(q.shape, k.shape))

    a, b = Table(torch.tensor([True, False])), Table(torch.tensor([False, True]))
    assert len((a | b | a).members) == 2
    q, k, v = torch.randn(3, 1, 2, 20, 8)
    each = [attend(*(x[:, i : i + 1] for x in (q, k, v)), one) for i, one in enumerate((a, b))]
    expected = torch.cat(each, 1)
    torch.testing.assert_close(attend(q, k, v, Heads([a, b])), expected)


def test_reach_through_different_layers():
    assert reach_through([SlidingWindow(5), Block(4), Global(2)]) == 4 + 3


@settings(max_examples=150, deadline=None)
@given(p=pattern, n=st.integers(2, 50))
def test_keeps_never_drops_a_key_that_is_seen_later(p, n):
    seen = visible(p, n)
    position = torch.arange(n)
    for now in range(n):
        later = seen[now:].any(0)
        kept = torch.as_tensor(p.keeps(position, now)).expand(n)
        assert not (later & ~kept)[: now + 1].any()


@pytest.mark.parametrize(
    "p",
    [
        SlidingWindow(4),
        Dilated(3, 2),
        Block(4, 1),
        SlidingWindow(4) | Global(2),
        Global(3),
        Fixed(5, 2),
        Segment(8, 3),
    ],
)
def test_keeps_drops_what_no_later_query_sees(p):
    """Exact, not merely safe: what is kept is seen by some later query."""
    n = 64
    seen, position = visible(p, n), torch.arange(24)
    for now in range(24):
        kept = torch.as_tensor(p.keeps(position, now)).expand(24)[: now + 1]
        assert torch.equal(kept, seen[now:, : now + 1].any(0))


@settings(max_examples=200, deadline=None)
@given(p=pattern)
def test_text_round_trip(p):
    assert parse(str(p)) == p
    assert str(parse(str(p))) == str(p)


@settings(max_examples=100, deadline=None)
@given(p=st.lists(pattern, min_size=1, max_size=3), q=st.one_of(union, windowed))
def test_text_round_trip_of_heads_and_layers(p, q):
    heads = Heads(p)
    assert parse(str(heads)) == heads
    layers = Layers({"0,-1": heads, "2:20": q, "1::4": Full(), "sliding_attention": q, "*": q})
    assert parse(str(layers)) == layers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("window:1024+global:4", SlidingWindow(1024) | Global(4)),
        ("dilated:512,4", Dilated(512, 4)),
        ("strided:128,128", Strided(128, 128)),
        ("block:256,1", Block(256, 1)),
        ("block:256", Block(256)),
        ("random:3,64,seed=7", Random(3, 64, seed=7)),
        ("random:3,64", Random(3, 64)),
        ("block:8&window:4+global:2", Block(8).within(4) | Global(2)),
        ("block:8 & window:6 & window:4", Block(8).within(4)),
        ("window:8&window:4", SlidingWindow(4)),
        ("longformer&window:4", SlidingWindow(4) | Global(1).within(4)),
        ("heads(block:8|full)&window:4", Heads([Block(8).within(4), SlidingWindow(4)])),
        ("full", Full()),
        ("window:1k", SlidingWindow(1024)),
        (" window : 8 + global : 1 ", SlidingWindow(8) | Global(1)),
        ("heads(window:64|full)", Heads([SlidingWindow(64), Full()])),
        ("streaming", SlidingWindow(1020) | Global(4)),
        ("0,-1=full;*=window:8", Layers({"0,-1": Full(), "*": SlidingWindow(8)})),
        ("::4=full", Layers({"::4": Full()})),
        ("full_attention=random:3,64,seed=1", Layers({"full_attention": Random(3, 64, seed=1)})),
    ],
)
def test_parse(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("windw:4", r"did you mean 'window'.*dilated"),
        ("window", r"needs window: write window:window"),
        ("window:4,5", "takes 1 value"),
        ("window:x", "whole number"),
        ("window:0", "at least 1"),
        ("window:99999999999999999999", "at most 2147483648"),
        ("block:4,-1", "at least 0"),
        ("window:4+", "empty part"),
        ("block:4&", "empty part"),
        ("block:4&global:2", "'global:2'.*behind '&', where only '&window:SIZE' may"),
        ("heads(window:4|full", "parentheses"),
        ("0=full;window:4", "SELECTOR=PATTERN"),
        ("0=full;0=window:4", "twice"),
        ("", "empty part"),
    ],
)
def test_bad_text(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: SlidingWindow(0), ValueError),
        (lambda: SlidingWindow(2.0), TypeError),
        (lambda: SlidingWindow(True), TypeError),
        (lambda: Global(-1), ValueError),
        (lambda: Dilated(4, 0), ValueError),
        (lambda: Random(1, 1, seed=-1), ValueError),
        (lambda: Fixed(4, 5), ValueError),
        (lambda: Segment(0, 1), ValueError),
        (lambda: Heads([]), ValueError),
        (lambda: Heads([SlidingWindow(1), 3]), TypeError),
        (lambda: Layers({}), ValueError),
        (lambda: Layers({"a b!": Full()}), ValueError),
        (lambda: parse(3), TypeError),
        (lambda: SlidingWindow(2) | 3, TypeError),
    ],
)
def test_bad_objects(make, error):
    with pytest.raises(error):
        make()


def test_selectors_are_python_slices():
    for selector in ("::4", "1::4", "2:20", ":3", "-2:", "::-1"):
        parts = [int(p) if p else None for p in selector.split(":")]
        assert select(selector, 10) == sorted(range(10)[slice(*parts)])
    assert select("sliding", 4, ("full", "sliding", "full", "sliding")) == [1, 3]
    for bad in ("10", "20:30", "other", "::0"):
        with pytest.raises(ValueError, match="layer selector"):
            select(bad, 10)


def test_layers_leave_the_rest_stock():
    plan = Layers({1: SlidingWindow(4)})
    assert plan.resolve(3) == [None, SlidingWindow(4), None]
    with pytest.raises(ValueError, match="matches no layer"):
        Layers({"0:3": Full(), "*": Full()}).resolve(3)


def test_presets_parse_and_cite():
    assert {"mistral", "streaming", "longformer", "bigbird", "sparse_transformer", "longnet"} <= set(presets())
    for name, text in presets().items():
        assert str(parse(name)) == text
        assert "arXiv" in PRESETS[name][1]


def test_gallery_draws_every_registered_pattern():
    for name, p in gallery():
        drawn = p.grid(24).splitlines()
        assert len(drawn) == 24
        assert all(row[::2].strip("#.") == "" for row in drawn), name


def test_a_users_own_pattern_needs_allows_alone():
    @dataclass(frozen=True)
    class Checker(Pattern, name="checker"):
        step: int = 2

        def allows(self, q, k, *, layer=0, head=0):
            return (q + k) % self.step == 0

    try:
        assert parse("checker:3") == Checker(3)
        assert parse(str(Checker(3) | SlidingWindow(2))) == Checker(3) | SlidingWindow(2)
        assert Checker(3).count(50) == int(visible(Checker(3), 50).sum())
        assert (Checker(3) | Global(2)).count(50) == int(visible(Checker(3) | Global(2), 50).sum())
        assert math.isinf(Checker().reach(1))
        assert bool(Checker().keeps(0, 10**6))
        assert Checker().within(5).reach(2) == 8
        with pytest.raises(ValueError, match="taken"):

            class Other(Pattern, name="checker"):
                pass
    finally:
        del patterns.base.REGISTRY["checker"]


def test_a_new_file_is_enough(tmp_path):
    """A file dropped into the package's folder is parsed, listed, drawn and importable, with no edit elsewhere."""
    package = tmp_path / "hf_longctx"
    shutil.copytree(Path(hf_longctx.__file__).parent, package)
    (package / "patterns" / "diagonal.py").write_text(
        textwrap.dedent(
            """
            from dataclasses import dataclass
            from hf_longctx.patterns.base import Pattern

            @dataclass(frozen=True)
            class Diagonal(Pattern, name="diagonal"):
                offset: int

                def allows(self, q, k, *, layer=0, head=0):
                    return q - k == self.offset
            """
        )
    )
    script = """
from hf_longctx.patterns import Diagonal, gallery, names, parse
assert "diagonal" in names() and "diagonal" in dict(gallery())
assert str(parse("diagonal:3+window:2")) == "diagonal:3+window:2"
print(Diagonal(1).grid(3))
"""
    assert fresh.run(script, package=package) == [". . .", "# . .", ". # ."]
