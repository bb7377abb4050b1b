"""Learned sinks: one more key for each query head, with a score of its own and the value 0."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_cases import Case, Odd, cases, error, fused, gradients, patterns, plain, rounding
from far_device import FAR, Far, FarDevice
from gradients import PROJECTED
from hf_longctx.attention import attend, backends, check_backend, choose, decode, dense, flash, flex, kernels
from hf_longctx.attention.attend import attend_within
from hf_longctx.attention.layout import Layout
from hf_longctx.patterns import Dilated, Full, Global, Heads, Random, SlidingWindow, gallery, parse
from hf_longctx.patterns.combine import leaves
from pairs import pairwise
from peak import Peak

INF = float("inf")
#: Those that take sinks.
BACKENDS = ("reference", "dense", "tiled", "auto")
PATTERNS = [p for _, p in gallery()] + [parse("window:5+global:2"), parse("dilated:3,2+block:4"), Odd()]


def sinks_of(query: torch.Tensor, seed: int = 9) -> torch.Tensor:
    """Sinks of the size of scores, positive and negative."""
    return 2 * torch.randn(query.shape[1], generator=torch.Generator().manual_seed(seed))


def inputs(heads=4, kv_heads=2, rows=130, keys=130, size=16, batch=1, grad=True, dtype=torch.float32):
    rng = torch.Generator().manual_seed(rows)
    shapes = (heads, rows), (kv_heads, keys), (kv_heads, keys)
    tensors = [torch.randn(batch, h, n, size, generator=rng, dtype=dtype) for h, n in shapes]
    return tuple(x.requires_grad_(grad) for x in (*tensors, sinks_of(tensors[0]).to(dtype)))


def run(tensors, pattern, backend="auto", **how):
    return attend(*tensors[:3], pattern, backend=backend, sinks=tensors[3], **how)


def agree(tensors, out, exact):
    """Outputs and the gradients of all four."""
    assert error(out, exact) < 5e-6
    for got, want in zip(gradients(out, tensors), gradients(exact, tensors)):
        assert error(got, want) < 1e-5 * max(1, float(want.abs().max()))


@given(cases(lengths=(1, 5, 40, 97)), st.sampled_from(BACKENDS))
@settings(max_examples=80, deadline=None)
def test_every_backend_matches_the_definition(case: Case, backend: str):
    """One more column of scores, in float64; a row that sees no key stays 0, and so do its gradients."""
    tensors = tuple(x.requires_grad_() for x in (*case.tensors, sinks_of(case.query)))
    out = run(tensors, case.pattern, backend, **case.where)
    *doubled, sinks = (x.double() for x in tensors)
    agree(tensors, out, plain(*doubled, case.seen, sinks))
    assert (out.masked_select(case.blind) == 0).all()


@given(cases(), st.sampled_from([torch.bfloat16, torch.float16]), st.sampled_from(["tiled", "dense"]))
@settings(max_examples=80, deadline=None)
def test_error_at_most_twice_that_of_plain_attention(case: Case, dtype: torch.dtype, backend: str):
    """Outputs and each gradient; gradients may also err like torch's own fused attention, as without sinks.

    A fused backward starts from a rounded output, and so does the gradient of a sink, a sum over all rows.
    """
    sinks = sinks_of(case.query).to(dtype)
    low = tuple(x.requires_grad_() for x in (*case.to(dtype).tensors, sinks))
    exact_inputs = tuple(x.detach().float().requires_grad_() for x in low)
    exact = run(exact_inputs, case.pattern, "reference", **case.where)
    usual, torchs = (f(*low[:3], case.seen, low[3]) for f in (plain, fused))
    out = run(low, case.pattern, backend, **case.where)
    assert out.dtype == dtype
    assert error(out, exact) <= 2 * error(usual, exact) + rounding(dtype, exact)
    rest = run((*exact_inputs[:2], torch.ones_like(exact_inputs[2]), exact_inputs[3]), case.pattern, **case.where)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(dtype)  # as `gradients` has it
    own = -((1 - rest[..., 0]) * (grad.float() * torchs.float()).sum(-1)).sum((0, 2))
    others = (*gradients(torchs, low[:3]), own)
    for got, common, other, want in zip(
        gradients(out, low), gradients(usual, low), others, gradients(exact, exact_inputs)
    ):
        assert got.dtype == dtype
        slack = (2 if got.dim() == 4 else 4) * rounding(dtype, want)
        assert error(got, want) <= 2 * max(error(common, want), error(other, want)) + slack


@pytest.mark.parametrize(
    ("pattern", "shape", "backend"),
    pairwise(
        PATTERNS,
        [(4, 2, 700, 1025, 32), (2, 1, 257, 257, 59), (3, 3, 113, 113, 111), (4, 1, 300, 300, 40)],
        ("tiled", "dense", "auto"),
    ),
)
def test_every_pattern_against_the_reference(pattern, shape, backend):
    """Grouped and single key-value heads, sizes off the kernels' grids, and fewer rows than keys."""
    tensors = inputs(*shape)
    agree(tensors, run(tensors, pattern, backend), run(tensors, pattern, "reference"))


@pytest.mark.parametrize("projected", PROJECTED)
@pytest.mark.parametrize("backend", ["tiled", "dense"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_float64_passes_a_numerical_gradient_check(pattern, backend, projected):
    tensors = inputs(2, 1, 9, 12, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *x: run(x, pattern, backend), tensors, fast_mode=projected)


N = 130
at = torch.arange(N)
WHERE = {
    "plain": {},
    "left": {"valid": at >= torch.tensor([[110], [7]])},
    "inner": {"valid": at % torch.tensor([[7], [11]]) != 3},
    "evicted": {"positions": (at + 1000 * (at >= 4))[None]},
    "segments": {"segments": (at >= 126).long()[None].expand(2, N)},
}
DECODED = [*PATTERNS, parse("strided:4,8+global:3"), parse("heads(window:20|strided:4,8)"), Odd() | SlidingWindow(5)]


@pytest.mark.parametrize(("where", "pattern", "rows"), pairwise(WHERE, DECODED, (1, 2, 8)))
def test_a_few_rows_equal_the_last_of_all(where, pattern, rows):
    """Decoding, which reads the visible keys where they are, with gradients and without."""
    q, *rest = inputs(batch=2)
    whole = run((q, *rest), pattern, "reference", **WHERE[where])[:, :, -rows:]
    last = run((q[:, :, -rows:], *rest), pattern, **WHERE[where])
    agree((q, *rest), last, whole)
    with torch.no_grad():
        assert error(run((q[:, :, -rows:], *rest), pattern, **WHERE[where]), whole) < 5e-6


#: Without those known by a rule alone, whose tiles hold keys that no row sees.
SHAPED = patterns().filter(lambda p: not any(isinstance(leaf, Odd) for leaf in leaves(p)))


@given(cases(SHAPED, lengths=(40, 97, 255)), st.sampled_from(BACKENDS))
@settings(max_examples=60, deadline=None)
def test_what_must_not_be_read_is_not_read(case: Case, backend: str):
    """Unseen keys and blind rows are NaN, and the gradients of blind rows too: the sinks' gradients stay clean."""
    dead_keys, dead_rows = ~case.seen.any(2)[..., None], case.blind
    clean = tuple(x.requires_grad_() for x in (*case.tensors, sinks_of(case.query)))
    dead = (dead_rows, dead_keys, dead_keys, torch.zeros(len(clean[3]), dtype=torch.bool))
    poisoned = tuple(x.detach().masked_fill(d, float("nan")).requires_grad_() for x, d in zip(clean, dead))
    want, got = (run(x, case.pattern, backend, **case.where) for x in (clean, poisoned))
    assert error(got, want) < 2e-6
    assert (got.masked_select(dead_rows) == 0).all()
    weight = torch.randn(want.shape, generator=torch.Generator().manual_seed(7))
    wanted = torch.autograd.grad(want, clean, weight)
    if backend in ("dense", "tiled"):
        weight = weight.masked_fill(dead_rows, float("nan"))
    for a, b in zip(torch.autograd.grad(got, poisoned, weight), wanted):
        assert error(a, b) < 1e-5 * max(1, float(b.abs().max()))


@pytest.mark.parametrize("rows", [1, 3, 300])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("text", ["full", "window:9+global:3", "random:2,8"])
def test_sinks_as_small_and_as_large_as_they_may_be(text, backend, rows):
    """-inf is no sink, forward and backward; one that takes all leaves nothing."""
    q, k, v, _ = tensors = inputs(rows=rows, keys=300)
    none = torch.full((4,), -INF, requires_grad=True)
    out, want = attend(q, k, v, text, backend=backend, sinks=none), attend(q, k, v, text, backend=backend)
    assert error(out, want) < 2e-6
    *got, own = gradients(out, (q, k, v, none))
    for a, b in zip(got, gradients(want, (q, k, v))):
        assert error(a, b) < 1e-5
    assert (own == 0).all()
    for size in (200.0, 1e30):
        huge = torch.full((4,), size, requires_grad=True)
        out = attend(q, k, v, text, backend=backend, sinks=huge)
        assert (out == 0).all()
        assert all((x == 0).all() for x in gradients(out, (*tensors[:3], huge)))


def test_zeros_are_the_softmax_off_by_one():
    q, k, v, _ = inputs(grad=False)
    weights = (q @ k.repeat_interleave(2, 1).transpose(-1, -2) / 4).exp().tril()
    want = weights / (1 + weights.sum(-1, keepdim=True)) @ v.repeat_interleave(2, 1)
    for backend in BACKENDS:
        torch.testing.assert_close(attend(q, k, v, "full", backend=backend, sinks=torch.zeros(4)), want)


@pytest.mark.parametrize("rows", [1, 3, 300])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pattern", [Heads([SlidingWindow(30), Full()]), Random(2, 16)], ids=str)
def test_heads_that_differ_keep_their_own(pattern, backend, rows):
    """Each key-value head by itself, with the sinks of its query heads."""
    q, k, v, sinks = tensors = inputs(rows=rows, keys=300)
    out = run(tensors, pattern, backend)
    one, q_at = torch.arange(300)[None], torch.arange(300 - rows, 300)[:, None]
    for head, own in enumerate(pattern.spread(2) if isinstance(pattern, Heads) else [pattern] * 2):
        seen = (own.allows(q_at, one, head=head) & (one <= q_at))[None, None]
        at = slice(2 * head, 2 * head + 2)
        want = plain(q[:, at], k[:, head : head + 1], v[:, head : head + 1], seen, sinks[at])
        assert error(out[:, at], want) < 2e-6


@pytest.mark.parametrize("scale", [-0.25, 0.0, 1.0])
def test_sinks_are_not_scaled(scale):
    tensors = inputs(rows=300, keys=300)
    exact = run(tensors, "window:16", "reference", scale=scale)
    scores = (scale * tensors[0] @ tensors[1].repeat_interleave(2, 1).transpose(-1, -2)).tril()
    scores = scores.masked_fill(torch.ones(300, 300).tril().triu(-15) == 0, -INF)
    weights = torch.cat([scores, tensors[3][:, None, None].expand(1, 4, 300, 1)], -1).softmax(-1)[..., :-1]
    assert error(exact, weights @ tensors[2].repeat_interleave(2, 1)) < 5e-6
    for backend in BACKENDS:
        agree(tensors, *(run(tensors, "window:16", b, scale=scale) for b in (backend, "reference")))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [1, 300])
def test_sinks_have_a_dtype_of_their_own(backend, dtype, rows):
    """The output has the query's, and the gradient that of the sinks; autocast leaves them as they are."""
    q, k, v, sinks = inputs(rows=rows, keys=300)
    sinks = sinks.detach().to(dtype).requires_grad_()
    for low in (torch.float32, torch.bfloat16):
        out = attend(*(x.to(low) for x in (q, k, v)), "window:9", backend=backend, sinks=sinks)
        assert out.dtype == low
        assert torch.autograd.grad(out.float().sum(), sinks)[0].dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attend(q, k, v, "window:9", backend=backend, sinks=sinks), out)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [1, 300])
def test_gradients_of_the_sinks_alone(backend, rows):
    *tensors, sinks = inputs(rows=rows, keys=300)
    frozen = (*(x.detach() for x in tensors), sinks)
    want = gradients(run((*tensors, sinks), "block:64", "reference"), (sinks,))
    assert error(gradients(run(frozen, "block:64", backend), (sinks,))[0], want[0]) < 1e-5


@pytest.mark.parametrize("rows", [1, 3, 200])
@pytest.mark.parametrize("value_dim", [16, 5, 40])
@pytest.mark.parametrize("kernel", [True, False])
def test_dense_with_values_of_another_size_and_without_a_kernel(monkeypatch, kernel, value_dim, rows):
    q, k, _, sinks = inputs(rows=rows, keys=200)
    v = torch.randn(1, 2, 200, value_dim, requires_grad=True)
    if not kernel:
        monkeypatch.setattr(kernels, "missing", lambda *_: "there is none")
    for text, backend in product(("full", "window:20+global:2"), ("dense", "auto")):
        tensors = q, k, v, sinks
        agree(tensors, run(tensors, text, backend), run(tensors, text, "reference"))


def test_dense_takes_long_inputs_a_few_rows_at_a_time(monkeypatch):
    monkeypatch.setattr(dense, "_MASK", 1000)
    tensors = inputs(rows=60, keys=90, batch=2)
    agree(tensors, run(tensors, "block:16", "dense"), run(tensors, "block:16", "reference"))


def test_memory_stays_linear():
    """As without sinks, which take one pass over the output in either direction."""
    tensors = inputs(3, 1, 8192, 8192, 32)
    given_bytes = sum(x.nbytes for x in (*tensors[:3], tensors[0]))
    with Peak(*tensors) as peak:
        run(tensors, "window:1024+global:4", "tiled").sum().backward()
    assert peak.peak <= 5 * given_bytes


# ---------------------------------------------------------------------- which backend, and what is refused


@pytest.mark.parametrize("backend", ["flex", "flash"])
def test_backends_without_sinks_refuse_them(backend):
    q, k, v, sinks = inputs(grad=False)
    words = (
        f"backend is '{backend}', which cannot compute full here: it takes no learned sinks; use 'tiled' or 'dense'"
    )
    with pytest.raises(ValueError, match=words):
        attend(q, k, v, "full", backend=backend, sinks=sinks)
    with pytest.raises(ValueError, match="no learned sinks"):
        check_backend(Full(), backend, device=torch.device("cuda"), dtype=torch.bfloat16, sinks=True)


def test_auto_passes_over_them_on_cuda(monkeypatch):
    for module, where in ((flash, "_no_kernel"), (flex, "_no_compiler")):
        monkeypatch.setattr(module, where, lambda _: None)
    cuda = {"device": "cuda", "dtype": torch.bfloat16, "sinks": True}
    for pattern in (Full(), SlidingWindow(64), SlidingWindow(64) | Global(4), Dilated(64, 4)):
        assert choose(pattern, n=1 << 14, **cuda)[0] == "tiled"
        assert choose(pattern, n=1 << 14, rows=1, **cuda)[0] == "dense"
    assert choose(Full(), n=1 << 14, **cuda | {"sinks": False})[0] == "flash"


@pytest.mark.parametrize(
    ("kind", "words", "sinks"),
    [
        (TypeError, "sinks is list: it must be a tensor", [0.0] * 4),
        (TypeError, "sinks has dtype torch.int64: it must be floating point", torch.zeros(4, dtype=torch.int64)),
        (TypeError, "sinks has dtype torch.float8", torch.zeros(4).to(torch.float8_e4m3fn)),
        (ValueError, r"sinks has shape \(2,\): it must be \(4,\), one number for each query head", torch.zeros(2)),
        (ValueError, r"sinks has shape \(1, 4\): it must be \(4,\)", torch.zeros(1, 4)),
        (ValueError, r"sinks has shape \(\)", torch.zeros(())),
        (ValueError, "sinks is on meta, but query is on cpu: move it there", torch.zeros(4, device="meta")),
    ],
)
def test_bad_sinks_are_named(kind, words, sinks):
    q, k, v, _ = inputs(grad=False)
    with pytest.raises(kind, match=words):
        attend(q, k, v, "full", sinks=sinks)
    with pytest.raises(kind, match=words):
        attend_within(q, k, v, Full(), Layout.of(130, 130), sinks=sinks)


def test_the_meta_device_has_shapes_and_gradients_of_shapes():
    q, k, v, sinks = (x.detach().to("meta").requires_grad_() for x in inputs())
    out = attend(q, k, v, "window:4", sinks=sinks)
    assert (out.device.type, out.shape) == ("meta", q.shape)
    assert torch.autograd.grad(out.sum(), sinks)[0].shape == (4,)


# ---------------------------------------------------------------------- as on a GPU


def away(tensors):
    return tuple(x.detach().to(FAR).requires_grad_() for x in tensors)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("backend", ["tiled", "dense"])
def test_through_the_cuda_kernels(pattern, backend, monkeypatch):
    """Every tensor made where the queries are, with padding on the left."""
    monkeypatch.setattr(kernels, "missing", lambda *_: None)
    tensors, valid = inputs(rows=60, keys=90, size=12), torch.arange(90)[None] >= 7
    exact = run(tensors, pattern, "reference", valid=valid)
    with FarDevice():
        q, k, v, sinks = far = away(tensors)
        layout = Layout.of(60, 90, valid=valid.to(FAR))
        out = backends.ATTEND[backend](q, k, v, pattern, layout, scale=12**-0.5, sinks=sinks)
        assert isinstance(out, Far)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(FAR)
        got = [x.cpu() for x in torch.autograd.grad(out, far, weight)]
        out = out.detach().cpu()
    assert error(out, exact) < 5e-6
    for a, b in zip(got, gradients(exact, tensors)):
        assert error(a, b) < 1e-5 * max(1, float(b.abs().max()))


@pytest.mark.parametrize("text", ["window:9+global:3", "block:8,1", "full"])
def test_decoding_through_the_cuda_kernel(text, monkeypatch):
    monkeypatch.setattr(kernels, "missing", lambda *_: None)
    tensors = inputs(rows=1, keys=80, grad=False)
    exact = run(tensors, text, "reference")
    with FarDevice(), torch.no_grad():
        q, k, v, sinks = away(tensors)
        out = decode.attend(q, k, v, parse(text), Layout.of(1, 80), scale=0.25, sinks=sinks).cpu()
    assert error(out, exact) < 2e-6
