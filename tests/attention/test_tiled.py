"""The engine against the oracle. The yardstick is plain attention in the same dtype: at most twice its error."""

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from attention_cases import Case, Odd, cases, error, fused, gradients, patterns, plain, rounding
from gradients import PROJECTED
from hf_longctx.attention import attend
from hf_longctx.patterns import Block, Full, Pattern, SlidingWindow, gallery, parse, tiles
from hf_longctx.patterns.base import given_fields
from hf_longctx.patterns.geometry import Drawn, Own, unwindowed
from hf_longctx.patterns.pieces import disjoint
from hf_longctx.patterns.tiles import lower
from peak import Peak

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@given(cases(), st.sampled_from(DTYPES))
@settings(max_examples=100, deadline=None)
def test_error_at_most_twice_that_of_plain_attention(case: Case, dtype: torch.dtype):
    """Outputs and each gradient, over layouts, head counts, odd sizes and any number of query rows.

    Gradients may also err like torch's own fused attention under a mask: it too takes the sum of gradient times output
    from the rounded output, where the textbook does not, which shows in rows that see two or three keys.
    """
    low = case.to(dtype)
    inputs = tuple(x.requires_grad_() for x in low.tensors)
    exact_inputs = tuple(x.requires_grad_() for x in low.to(torch.float32).tensors)
    exact = attend(*exact_inputs, case.pattern, backend="reference", **case.where)
    usual, torchs = plain(*inputs, case.seen), fused(*inputs, case.seen)
    out = attend(*inputs, case.pattern, backend="tiled", **case.where)
    assert out.dtype == dtype
    assert error(out, exact) <= 2 * error(usual, exact) + rounding(dtype, exact)
    for got, common, other, want in zip(
        *(gradients(o, i) for o, i in ((out, inputs), (usual, inputs), (torchs, inputs), (exact, exact_inputs)))
    ):
        assert error(got, want) <= 2 * max(error(common, want), error(other, want)) + rounding(dtype, want)


#: One of each kind in sizes that make many chunks, blocks and classes of 1025 tokens, and what joins them.
LARGE = [
    "full",
    "window:300",
    "window:600+global:4",
    "global:7",
    "dilated:100,8",
    "strided:40,30",
    "block:128,1",
    "block:600",
    "random:3,64+window:128",
    "fixed:128,32",
    "segment:256,4+segment:1024,6",
    "longformer",
    "bigbird",
    "block:700&window:300",
    "block:128,1&window:100+random:3,64&window:700",
    "fixed:128,32&window:500",
    "segment:256,4&window:200+segment:1024,6&window:300",
    "bigbird&window:300",
]


@pytest.mark.parametrize("text", LARGE)
@pytest.mark.parametrize("rows", [1025, 700])
def test_many_chunks_and_a_ragged_one(text, rows):
    rng = torch.Generator().manual_seed(1)
    q = torch.randn(1, 4, rows, 32, generator=rng, requires_grad=True)
    k, v = (torch.randn(1, 2, 1025, 32, generator=rng, requires_grad=True) for _ in range(2))
    out, exact = (attend(q, k, v, text, backend=b) for b in ("tiled", "reference"))
    assert error(out, exact) < 2e-6
    for a, b in zip(*(gradients(o, (q, k, v)) for o in (out, exact))):
        assert error(a, b) < 1e-5 * max(1, float(b.abs().max()))


@pytest.mark.parametrize("text", ["block:1100", "block:1100,1"])
@pytest.mark.parametrize("rows", [2400, 900])
def test_large_blocks_one_by_one(text, rows):
    rng = torch.Generator().manual_seed(4)
    q = torch.randn(1, 1, rows, 8, generator=rng, requires_grad=True)
    k, v = (torch.randn(1, 1, 2400, 8, generator=rng, requires_grad=True) for _ in range(2))
    out, exact = (attend(q, k, v, text, backend=b) for b in ("tiled", "reference"))
    assert error(out, exact) < 2e-6
    for a, b in zip(*(gradients(o, (q, k, v)) for o in (out, exact))):
        assert error(a, b) < 1e-5 * max(1, float(b.abs().max()))


@pytest.mark.parametrize("block", [Block(4096), Block(8192), Block(1024, 3), Block(100, 50)], ids=str)
@pytest.mark.parametrize("rows", [(0, 4096), (2048, 4096)])
def test_one_causal_run_is_tiled_like_full_attention(block, rows):
    """Where no row has left a block behind, there is nothing to cut."""
    ours, full = (list(lower(disjoint(p.pieces()), rows, (0, 4096))) for p in (block, Full()))
    assert ours == full


#: Every registered pattern small, a union, and a rule alone.
SMALL = [p for _, p in gallery()] + [parse("window:5+global:2"), parse("dilated:3,2+block:4"), Odd()]


@pytest.mark.parametrize("projected", PROJECTED)
@pytest.mark.parametrize("pattern", SMALL, ids=str)
def test_float64_passes_a_numerical_gradient_check(pattern, projected):
    rng = torch.Generator().manual_seed(2)
    q = torch.randn(1, 2, 9, 2, generator=rng, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(1, 1, 12, 2, generator=rng, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda *x: attend(*x, pattern, backend="tiled"), (q, k, v), fast_mode=projected)


@pytest.mark.parametrize(("n", "size"), [(97, 111), (113, 59), (1023, 40), (1025, 59)])
@pytest.mark.parametrize("pattern", [p for _, p in gallery()], ids=str)
def test_lengths_and_head_sizes_off_the_grid(pattern, n, size):
    """Every registered pattern at each of them, forward and backward, so that no draw of `cases` has to."""
    rng = torch.Generator().manual_seed(n)
    q = torch.randn(1, 2, n, size, generator=rng, requires_grad=True)
    k, v = (torch.randn(1, 1, n, size, generator=rng, requires_grad=True) for _ in range(2))
    out, exact = (attend(q, k, v, pattern, backend=b) for b in ("tiled", "reference"))
    assert error(out, exact) < 5e-6
    for a, b in zip(*(gradients(o, (q, k, v)) for o in (out, exact))):
        assert error(a, b) < 1e-5 * max(1, float(b.abs().max()))


HUGE = 1 << 31


def huge():
    """Every registered pattern with each of its sizes, and all, as large as they may be, and in unions."""
    for _, pattern in gallery():
        names = [f.name for f in given_fields(type(pattern)) if type(getattr(pattern, f.name)) is int]
        for chosen in dict.fromkeys([*((name,) for name in names), tuple(names)]):
            if chosen == ("summary",):
                continue  # at most the stride
            one = replace(pattern, **dict.fromkeys(chosen, HUGE))
            yield from (one, one | parse("window:5+global:2"), one | Block(30), one.within(70), one | Odd())


@pytest.mark.parametrize("pattern", list(dict.fromkeys(huge())), ids=str)
def test_sizes_as_large_as_they_may_be(pattern):
    """For a few rows too, and at positions past 2**31, which a rule alone would take ages to look at."""
    rng = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(1, 1, 150, 8, generator=rng, requires_grad=True) for _ in range(3))
    for rows in (150, 3, 1):
        outs = [attend(q[:, :, -rows:], k, v, pattern, backend=b) for b in ("reference", "tiled", "dense", "auto")]
        for out in outs[1:]:
            assert error(out, outs[0]) < 2e-6
        for a, b in zip(gradients(outs[1], (q, k, v)), gradients(outs[0], (q, k, v))):
            assert error(a, b) < 1e-5
    far = {"positions": torch.arange(HUGE - 30, HUGE + 120)[None]}
    shapes = map(unwindowed, pattern.pieces() or (Own(pattern),))
    if not any(isinstance(shape, Own | Drawn) for shape in shapes):
        got, want = (attend(q, k, v, pattern, backend=b, **far) for b in ("tiled", "reference"))
        assert error(got, want) < 2e-6


class Stateful(Pattern, name=None):
    """A plain class whose state no one can compare."""

    def __init__(self, step):
        self.__dict__["step"] = step

    def allows(self, q, k, *, layer=0, head=0):
        return (k % self.step == 0) & (layer == 3)


@pytest.mark.parametrize("pattern", [p for _, p in gallery()], ids=str)
def test_a_window_of_its_own_leaves_shapes(pattern):
    """No layer of a model with windows falls back to asking the rule about pairs."""
    for window in (50, 5000):
        pieces = disjoint(pattern.within(window).pieces())
        assert not any(isinstance(unwindowed(piece.shape), Own) for piece in pieces)


def test_a_rule_behind_a_window_is_asked_about_near_keys_alone():
    asked = []

    def times(n):
        asked.clear()
        q, k, v = (torch.randn(1, 1, n, 8) for _ in range(3))
        attend(q, k, v, Watched().within(64), backend="tiled")
        return sum(asked)

    class Watched(Pattern, name=None):
        def allows(self, q, k, *, layer=0, head=0):
            asked.append(torch.broadcast_shapes(q.shape, k.shape).numel())
            return (q - k) % 3 == 0

    assert times(8192) < 2.5 * times(4096)


def test_what_is_remembered_of_a_rule_is_not_taken_for_another():
    """Rules differ by state and layer; a longer input is looked at afresh where it is longer."""
    rng = torch.Generator().manual_seed(3)
    for n in (300, 1500, 2100):
        q, k = torch.randn(1, 2, n, 8, generator=rng), torch.randn(1, 1, n, 8, generator=rng)
        for rule, layer in ((Stateful(2), 3), (Stateful(3), 3), (Stateful(3), 0), (Odd() | Stateful(7), 3)):
            got, want = (attend(q, k, k, rule, backend=b, layer=layer) for b in ("tiled", "reference"))
            assert error(got, want) < 1e-5


def test_a_rule_is_never_asked_about_a_position_that_does_not_exist():
    class Table(Pattern, name=None):
        def allows(self, q, k, *, layer=0, head=0):
            return torch.eye(333, dtype=torch.bool)[q, k]

    q = torch.randn(1, 1, 333, 8)
    assert error(attend(q, q, q, Table(), backend="tiled"), q) < 2e-6


@given(cases(lengths=(40, 97, 255)), st.sampled_from(["tiled", "dense", "auto", "reference"]))
@settings(max_examples=80, deadline=None)
def test_what_must_not_be_read_is_not_read(case: Case, backend: str):
    """Keys that no row sees, padding included, and rows that see no key are NaN; nothing changes, nor do gradients."""
    dead_keys, dead_rows = ~case.seen.any(2)[..., None], case.blind
    clean = tuple(x.requires_grad_() for x in case.tensors)
    dead = (dead_rows, dead_keys, dead_keys)
    poisoned = tuple(x.detach().masked_fill(d, float("nan")).requires_grad_() for x, d in zip(clean, dead))
    want, got = (attend(*x, case.pattern, backend=backend, **case.where) for x in (clean, poisoned))
    assert error(got, want) < 2e-6
    assert (got.masked_select(dead_rows) == 0).all()
    for a, b, d in zip(gradients(got, poisoned), gradients(want, clean), dead):
        assert error(a, b) < 1e-5 * max(1, float(b.abs().max()))
        assert (a.masked_select(d) == 0).all()


@pytest.fixture
def poisoned_buffers():
    """Memory that is made without a value is NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("backend", ["tiled", "dense", "auto"])
@pytest.mark.parametrize("pattern", [*SMALL, parse("bigbird")], ids=str)
def test_no_buffer_is_read_before_it_is_written(pattern, backend, poisoned_buffers):
    """Forward and backward, decoding too, with padding on the left and rows that see nothing."""
    q, k, v = (torch.randn(2, h, 300, 8, requires_grad=True) for h in (4, 2, 2))
    valid = torch.arange(300) >= torch.tensor([[0], [9]])
    for rows in (300, 130, 2, 1):
        out = attend(q[:, :, -rows:], k, v, pattern, backend=backend, valid=valid)
        assert all(x.isfinite().all() for x in (out, *gradients(out, (q, k, v))))
        with torch.no_grad():
            assert attend(q[:, :, -rows:], k, v, pattern, backend=backend, valid=valid).isfinite().all()


@given(
    patterns(),
    st.integers(0, 300),
    st.integers(1, 300),
    st.integers(0, 100),
    st.integers(1, 200),
    st.sampled_from([64, tiles._STRETCH]),
)
@example(Block(1).within(1), 0, 1, 0, 2, 64)  # a key ahead of the only row, in the row's own tile
@example((Odd() | Block(8)).within(4), 0, 100, 0, 100, 64)  # a rule among what another shape leaves out
@settings(max_examples=200, deadline=None)
def test_tiles_hold_every_pair_once(pattern, row, rows, key, keys, stretch):
    """Lowering any rectangle of positions covers exactly the visible pairs, and views read no key for nothing."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tiles, "_STRETCH", stretch)
        _check_tiles(pattern, row, rows, key, keys)


def _check_tiles(pattern: Pattern, row: int, rows: int, key: int, keys: int) -> None:
    shapes = pattern.pieces()
    pieces = disjoint((Own(pattern),) if shapes is None else shapes)
    held = torch.zeros(rows, keys, dtype=torch.int64)
    for tile in lower(pieces, (row, row + rows), (key, key + keys), 16):
        seen = tile.seen(row, key)
        if tile.regular:
            assert seen.any(0).all()
            assert seen.any(1).all()
        if tile.picks is not None:
            runs = tile.picks.unflatten(1, (-1, tile.run))
            start = runs[..., :1]
            assert torch.equal(runs, (start + torch.arange(tile.run)).where(start >= 0, -1))
            assert tile.run == 1 or (start[start >= 0] % tile.run == 0).all()
            hides = (~seen.reshape(tile.count if seen.dim() == 3 else 1, -1).all(1)).nonzero()[:, 0]
            assert set(hides.tolist()) <= set(tile.hiding(row, key).tolist())
        for c in range(tile.copies):
            for t in range(tile.count):
                shift = c + t * tile.step
                r = tile.row + shift + tile.spacing * torch.arange(tile.rows)
                k = tile.key + shift + tile.spacing * torch.arange(tile.keys)
                one = seen if seen.dim() == 2 else seen[c * tile.count + t]
                if tile.picks is not None:
                    k = tile.picks[t]
                    one, k = one[:, k >= 0], k[k >= 0]
                held[r[:, None], k] += one
    q, k = torch.arange(row, row + rows)[:, None], torch.arange(key, key + keys)
    assert torch.equal(held, (pattern.allows(q, k) & (k <= q)).long())


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    "text",
    ["window:1024+global:4", "dilated:128,8", "strided:64,128", "block:256,1", "bigbird", "fixed:128,16", "longnet"],
)
def test_memory_stays_linear(text, train):
    """Extra memory, the result included, at 16K tokens (half of that to train)."""
    n = 16384 if not train else 8192
    q = torch.randn(1, 3, n, 32, requires_grad=train)
    k, v = (torch.randn(1, 1, n, 32, requires_grad=train) for _ in range(2))
    given_bytes = sum(x.nbytes for x in (q, k, v, q))
    with Peak(q, k, v) as peak:
        out = attend(q, k, v, text, backend="tiled")
        if train:
            out.sum().backward()
    assert out.nbytes <= peak.largest < n * n / 8
    assert out.nbytes <= peak.peak <= (5 if train else 4) * given_bytes


def test_keys_are_not_copied():
    """Nothing the size of the keys is made where one document fills the row."""
    k = torch.randn(1, 4, 8192, 32)
    q = torch.randn(1, 4, 512, 32)
    with Peak(q, k) as peak:
        attend(q, k, k, SlidingWindow(128), backend="tiled")
    assert peak.peak < k.nbytes / 4
