"""A few new tokens against many keys: the same numbers, and only the visible keys are read."""

import pytest
import torch

from attention_cases import Odd, error, gradients, seen
from hf_longctx.attention import attend
from hf_longctx.attention.layout import Layout
from hf_longctx.attention.reads import reads
from hf_longctx.patterns import Full, Heads, Random, SlidingWindow, Strided, gallery, parse
from hf_longctx.patterns.rows import Rows
from pairs import pairwise
from peak import Peak

#: Every registered pattern, unions in which combs and spans meet, heads that differ, and a rule alone.
PATTERNS = [p for _, p in gallery()] + [
    parse(text)
    for text in (
        "window:20",
        "window:20+global:4",
        "strided:4,8+global:3",
        "strided:9,6+dilated:5,4+block:16",
        "dilated:8,3+dilated:20,3",
        "segment:32,1+segment:64,2+segment:128,3",
        "random:2,8+window:12+global:2",
        "fixed:16,2+window:3",
        "heads(window:20|strided:4,8)",
    )
] + [Odd(), Odd() | SlidingWindow(5)]  # fmt: skip
N = 130
at = torch.arange(N)
#: Ways in which the keys may be stored. Most of all, and in an order that no cache has, too.
WHERE = {
    "plain": {},
    "positions": {"positions": at[None]},
    "left": {"valid": at >= torch.tensor([[110], [7]])},
    "right": {"valid": at < torch.tensor([[130], [127]])},
    "inner": {"valid": at % torch.tensor([[7], [11]]) != 3},
    "evicted": {"positions": (at + 1000 * (at >= 4))[None]},
    "evicted and padded": {"positions": torch.where(at < torch.tensor([[40], [0]]), -1, at + 90 * (at > 99))},
    "holes": {"positions": at[None] * 2},
    "any order": {"positions": torch.cat([at[:90].flip(0), at[90:]])[None]},
    "segments": {"segments": (at >= 126).long()[None].expand(2, N)},
}


def inputs(rows, grad=False):
    rng = torch.Generator().manual_seed(rows)
    return [torch.randn(2, h, n, 16, generator=rng, requires_grad=grad) for h, n in ((4, N), (2, N), (2, N))]


@pytest.mark.parametrize(("where", "pattern", "rows"), pairwise(WHERE, PATTERNS, (1, 2, 8)))
def test_decode_equals_the_last_rows_of_the_oracle(where, pattern, rows):
    """Output and gradients; the two batch rows differ, and so may the heads."""
    q, k, v = inputs(rows, grad=True)
    whole = attend(q, k, v, pattern, backend="reference", **WHERE[where])[:, :, -rows:]
    last = attend(q[:, :, -rows:], k, v, pattern, **WHERE[where])
    assert error(last, whole) < 2e-6
    for got, want in zip(gradients(last, (q, k, v)), gradients(whole, (q, k, v))):
        assert error(got, want) < 1e-5 * max(1, float(want.abs().max()))
    with torch.no_grad():
        assert error(attend(q[:, :, -rows:], k, v, pattern, **WHERE[where]), whole) < 2e-6


@pytest.mark.parametrize(("where", "pattern", "rows"), pairwise(WHERE, PATTERNS, (1, 3)))
def test_keys_that_no_row_sees_are_not_read(where, pattern, rows):
    """They are NaN, in keys and in values, and nothing changes, nor do gradients."""
    q, k, v = inputs(rows)
    q = q[:, :, -rows:]
    dead = ~seen(pattern, 2, rows, N, WHERE[where], 2).any(2)[..., None]
    poisoned = [x.masked_fill(dead, float("nan")) for x in (k, v)]
    want = attend(q, k, v, pattern, **WHERE[where])
    assert error(attend(q, *poisoned, pattern, **WHERE[where]), want) < 2e-6
    poisoned = [x.requires_grad_() for x in poisoned]
    grads = gradients(attend(q, *poisoned, pattern, **WHERE[where]), tuple(poisoned))
    for g in grads:
        assert g.isfinite().all()
        assert (g.masked_select(dead) == 0).all()


FAR = 1 << 15


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize(
    "text",
    [
        *("window:512+global:4", "dilated:256,8", "strided:64,128", "block:256,1", "random:3,64", "bigbird"),
        *("segment:4096,8", "fixed:128,4", "strided:32,256+dilated:64,12", "heads(window:99|strided:8,128)"),
    ],
)
def test_memory_follows_the_visible_keys(text, rows):
    """What is copied, counted: twice the visible keys and values at most, and a byte or two a key to find them."""
    q, k, v = torch.randn(1, 4, rows, 64), torch.randn(1, 2, FAR, 64), torch.randn(1, 2, FAR, 64)
    pattern = parse(text)
    visible = seen(pattern, 1, rows, FAR, {}, 2).any(2).sum(-1).max()
    with Peak(q, k, v) as peak:
        attend(q, k, v, pattern)
    looked = 40 * FAR if "fixed" in text else 2 * FAR
    assert peak.peak <= 2 * int(visible) * 2 * 64 * 2 * 4 + looked + (1 << 16)


def read(text, rows=1, keys=FAR, heads=1, **where):
    found = reads(
        parse(text), Layout.of(rows, keys, **where), torch.device("cpu"), layer=0, heads=range(heads)
    )  # fmt: skip
    return found.slices if found.index is None else found.index


def test_runs_are_read_where_they_are():
    assert read("full") == (slice(0, FAR, 1),)
    assert read("window:20+global:4") == (slice(0, 4, 1), slice(FAR - 20, FAR, 1))
    assert read("strided:8,128") == (slice(FAR - 8, FAR, 1), slice(127, FAR - 8, 128))
    assert read("window:20", rows=3) == (slice(FAR - 22, FAR, 1),)
    # What was dropped in between no longer separates them.
    kept = torch.cat([torch.arange(4), torch.arange(980, 1000)])[None]
    assert read("window:20+global:4", keys=24, positions=kept) == (slice(0, 24, 1),)
    assert read("random:2,8", heads=2).shape == (1, 2, 16)
    assert read("segment:32,2+segment:64,3", keys=63) == (slice(2, 63),)  # too few to copy


def test_all_keys_are_read_where_copying_most_of_them_costs_more():
    for rows in (1, 2):
        found = reads(Strided(2, 2), Layout.of(rows, FAR), torch.device("cpu"), layer=0, heads=range(1))
        assert found.slices == (slice(rows % 2, FAR),)
    found = reads(Random(3, 128), Layout.of(1, 512), torch.device("cpu"), layer=0, heads=range(2))
    assert found.slices == (slice(0, 384),)


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if not isinstance(p, Heads)], ids=str)
@pytest.mark.parametrize("q", [[0], [1, 2, 3], [97], list(range(90, 98))])
def test_the_keys_that_rows_name(pattern, q):
    rows, k = pattern.rows(torch.tensor(q)), torch.arange(100)
    if rows is None:
        return
    visible = (pattern.allows(torch.tensor(q)[:, None], k) & (k <= torch.tensor(q)[:, None])).any(0).nonzero()[:, 0]
    assert torch.equal(rows.keys(), visible)
    if rows.slices() is not None:
        assert sorted(i for r in rows.slices() for i in r) == visible.tolist()
    assert Rows(torch.tensor(q)).slices() == []


@pytest.mark.parametrize("pattern", ["strided:4,8", "window:5+global:2", "random:2,8"])
def test_what_to_read_is_worked_out_once_for_all_layers(pattern, monkeypatch):
    """Layers that are given the same positions share it, unless the pattern differs by layer."""
    from hf_longctx.attention import decode

    calls = []
    monkeypatch.setattr(decode, "reads", lambda *a, **k: calls.append(k["layer"]) or reads(*a, **k))
    (q, k, v), positions = inputs(1), torch.where(at < 5, -1, at - 5)[None]
    for layer in range(3):
        attend(q[:, :, -1:], k, v, pattern, positions=positions, layer=layer)
    assert calls == ([0, 1, 2] if "random" in pattern else [0])


def test_a_row_that_sees_nothing_is_zero_and_differentiable():
    class Never(type(Full()), name=None):
        def rows(self, q, *, layer=0, head=0):
            from hf_longctx.patterns.rows import Rows

            return Rows(q)

        def allows(self, q, k, *, layer=0, head=0):
            return torch.zeros(torch.broadcast_shapes(q.shape, k.shape), dtype=torch.bool)

    q, k = torch.randn(1, 1, 1, 8, requires_grad=True), torch.randn(1, 1, 50, 8, requires_grad=True)
    out = attend(q, k, k, Never())
    assert (out == 0).all()
    out.sum().backward()
    assert (q.grad == 0).all()
    assert k.grad is None or (k.grad == 0).all()


def test_what_inference_mode_remembered_is_not_for_training():
    valid = torch.ones(1, 200, dtype=torch.bool)
    valid[0, :5] = False
    q, k, v = torch.randn(1, 2, 3, 16), torch.randn(1, 2, 200, 16), torch.randn(1, 2, 200, 16)
    text = "strided:10,7+dilated:40,3"
    with torch.inference_mode():
        known = attend(q, k, v, text, valid=valid)
    q.requires_grad_()
    out = attend(q, k, v, text, valid=valid)
    out.sum().backward()
    assert torch.equal(out.detach(), known)
    assert q.grad.isfinite().all()
