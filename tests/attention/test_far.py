"""As on a GPU: every tensor made where the queries are, and the CUDA kernels called as they demand."""

import pytest
import torch
from hypothesis import given, settings

import far_device
from attention_cases import Case, Odd, cases, error, gradients, patterns
from far_device import FAR, Far, FarDevice
from hf_longctx.attention import attend, decode, dense, flash, flex, tiled
from hf_longctx.attention.layout import Layout
from hf_longctx.patterns import SlidingWindow, gallery, parse

SMALL = [p for _, p in gallery()] + [parse("window:5+global:2"), parse("dilated:3,2+block:4")]


def away(case: Case) -> tuple[tuple[torch.Tensor, ...], Layout]:
    """The tensors of a case on the far device, and where its tokens are."""
    layout = Layout.of(case.query.shape[2], case.key.shape[2], **{k: v.to(FAR) for k, v in case.where.items()})
    return tuple(x.detach().to(FAR).requires_grad_() for x in case.tensors), layout


@given(cases(patterns(), lengths=(1, 31, 97, 113)))
@settings(max_examples=30, deadline=None)
def test_tiled_forward_and_backward(case: Case):
    """The whole engine through the CUDA kernels: masks, indices, merges, gradients, sizes off the grid."""
    near = tuple(x.requires_grad_() for x in case.tensors)
    exact = attend(*near, case.pattern, backend="reference", **case.where)
    with FarDevice():
        far, layout = away(case)
        out = tiled.attend(*far, case.pattern, layout, scale=case.query.shape[-1] ** -0.5)
        assert isinstance(out, Far)
        assert out.dtype == case.query.dtype
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(FAR)
        got = torch.autograd.grad(out, far, weight)
        out, got = out.detach().cpu(), [x.cpu() for x in got]
    assert error(out, exact) < 5e-6
    for a, b in zip(got, gradients(exact, near)):
        assert error(a, b) < 1e-5 * max(1, float(b.abs().max()))


@pytest.mark.parametrize("out", [0.0, float("nan")])
@pytest.mark.parametrize("lse", [0.0, float("-inf"), float("inf"), float("nan")])
@pytest.mark.parametrize("pattern", [Odd(), Odd() | SlidingWindow(3), parse("random:2,8+window:20")])
def test_what_a_kernel_gives_for_rows_without_a_key_means_nothing(pattern, out, lse, monkeypatch):
    """NaN or 0, and any log-sum-exp: neither reaches the merged output, nor a gradient."""
    monkeypatch.setattr(far_device, "EMPTY", {"out": out, "lse": lse})
    monkeypatch.setattr(far_device, "HIDDEN", [])
    rng = torch.Generator().manual_seed(0)
    near = [torch.randn(1, h, 50, 16, generator=rng, requires_grad=True) for h in (4, 2, 2)]
    where = {"positions": torch.where(torch.arange(50) < 3, -1, torch.arange(50) - 3)[None]}
    exact = attend(*near, pattern, backend="reference", **where)
    with FarDevice():
        far, layout = away(Case(*near, pattern, where))
        got = tiled.attend(*far, pattern, layout, scale=0.25)
        weight = torch.randn(got.shape, generator=torch.Generator().manual_seed(7)).to(FAR)
        grads = [x.cpu() for x in torch.autograd.grad(got, far, weight)]
    assert far_device.HIDDEN, "no row was hidden from a kernel: this shows nothing"
    assert error(got.detach().near, exact) < 5e-6
    for a, b in zip(grads, gradients(exact, tuple(near))):
        assert error(a, b) < 1e-5 * max(1, float(b.abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pattern", SMALL, ids=str)
def test_tiled_in_half_precision(pattern, dtype):
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 70, 16, generator=rng).to(dtype) for heads in (4, 2, 2))
    exact = attend(q.float(), k.float(), v.float(), pattern, backend="reference")
    with FarDevice():
        out = tiled.attend(*(x.to(FAR) for x in (q, k, v)), pattern, Layout.of(70, 70), scale=0.25).cpu()
    assert out.dtype == dtype
    assert error(out, exact) < 2e-2


@given(cases(patterns(), lengths=(31, 97)))
@settings(max_examples=20, deadline=None)
def test_the_other_ways_make_their_masks_there_too(case: Case):
    """Dense calls, block masks, packing; numbers are others' tests."""
    where = {"scale": 1.0}
    with FarDevice(), torch.no_grad():
        far, layout = away(case)
        assert isinstance(dense.attend(*far, case.pattern, layout, **where), Far)
        heads = range(case.key.shape[1])
        block = flex.block_mask(case.pattern, layout, FAR, heads=heads, group=far[0].shape[1] // len(heads)).block
        assert isinstance(block.kv_indices, Far)
        assert isinstance(block.full_q_indices, Far)
        packed = flash.pack(layout, len(case.query), FAR)
        assert packed is None or isinstance(packed.key_starts, Far)


@pytest.mark.parametrize("text", ["window:9+global:3", "block:8,1", "full"])
@pytest.mark.parametrize("size", [16, 59])
def test_decoding_merges_spans_through_the_cuda_kernel(text, size, monkeypatch):
    q, k, v = torch.randn(1, 4, 1, size), torch.randn(1, 2, 80, size), torch.randn(1, 2, 80, size)
    monkeypatch.setattr(decode, "_has_kernel", lambda *_: True)
    exact = attend(q, k, v, text, backend="reference")
    with FarDevice():
        far = (x.to(FAR) for x in (q, k, v))
        out = decode.attend(*far, parse(text), Layout.of(1, 80), scale=size**-0.5).cpu()
    assert error(out, exact) < 2e-6


def test_the_far_device_notices_what_it_is_for():
    with FarDevice():
        far, near = torch.ones(3).to(FAR), torch.ones(3)
        assert bool((far + far == far * 2).all())
        with pytest.raises(AssertionError, match="on the CPU and others far away"):
            far + near
