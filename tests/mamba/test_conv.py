"""The convolution before the scan against its definition, token by token."""

from __future__ import annotations

import copy
import importlib.util
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_longctx.mamba import conv_kernels
from hf_longctx.mamba.conv import causal_conv


def definition(x, weight, bias, past, valid, documents):
    """One row: (l, c) in, what comes out at real tokens, and the last inputs of the last document."""
    taps = weight.shape[1]
    real = valid.nonzero()[:, 0].tolist()
    line = [(None, row) for row in past.T] + [(int(documents[i]), x[i]) for i in real]
    first = line[taps - 1][0] if real else None
    line = [(first if d is None else d, row) for d, row in line]
    out = torch.zeros_like(x)
    for n, i in enumerate(real):
        at = n + taps - 1
        out[i] = bias + sum(weight[:, taps - 1 - back] * line[at - back][1] * (line[at - back][0] == line[at][0])
                            for back in range(taps))  # fmt: skip
    left = [row * (d == line[-1][0]) for d, row in line[-(taps - 1) :]]
    return out, torch.stack(left, 1)


@given(st.integers(1, 3), st.integers(1, 12), st.integers(2, 5), st.integers(0, 1 << 20), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_equals_the_definition(batch, length, taps, seed, pads, packs):
    torch.manual_seed(seed)
    x, past = torch.randn(batch, length, 3), torch.randn(batch, 3, taps - 1)
    weight, bias = torch.randn(3, taps), torch.randn(3)
    valid = torch.rand(batch, length) < 0.6 if pads else torch.ones(batch, length, dtype=torch.bool)
    ids = (torch.rand(batch, length) < 0.3).cumsum(1) if packs else torch.zeros(batch, length, dtype=torch.long)
    y, left = causal_conv(x, weight, bias, past=past, valid=valid if pads else None, documents=ids if packs else None)
    for row in range(batch):
        expected = definition(x[row], weight, bias, past[row], valid[row], ids[row])
        torch.testing.assert_close((y[row], left[row]), expected, atol=1e-5, rtol=1e-5)


@given(st.integers(0, 9), st.integers(0, 1 << 20))
@settings(max_examples=20, deadline=None)
def test_any_split_is_the_whole(cut, seed):
    torch.manual_seed(seed)
    x, weight, bias = torch.randn(2, 10, 3), torch.randn(3, 4), torch.randn(3)
    valid = torch.rand(2, 10) < 0.7
    whole, last = causal_conv(x, weight, bias, valid=valid)
    first, past = causal_conv(x[:, : cut + 1], weight, bias, valid=valid[:, : cut + 1])
    if cut < 9:
        rest, past = causal_conv(x[:, cut + 1 :], weight, bias, past=past, valid=valid[:, cut + 1 :])
        first = torch.cat([first, rest], 1)
    torch.testing.assert_close((first, past), (whole, last), atol=1e-6, rtol=1e-6)


def test_gradients():
    x = torch.randn(2, 6, 2, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((2, 3), (2,)))
    past = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)
    valid = torch.tensor([[0, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 0]], dtype=torch.bool)
    ids = torch.tensor([[0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 2, 2]])

    def run(x, weight, bias, past):
        return causal_conv(x, weight, bias, past=past, valid=valid, documents=ids)

    assert torch.autograd.gradcheck(run, (x, weight, bias, past))


# ------------------------------------------------------------------ causal-conv1d


class OnCuda(torch.Tensor):
    """A tensor that says that it is on CUDA."""

    is_cuda = True


def near(x):
    return x.as_subclass(torch.Tensor)


def convolve(x, before, weight, bias, ids=None):
    """By its documentation: y_t = bias + sum over k of weight_k x_(t - K + 1 + k), 0 where ids differ; (b, c, l)."""
    taps, length = weight.shape[1], x.shape[2]
    full = torch.cat([before, x], 2)
    windows = full.unfold(2, taps, 1)
    if ids is not None:
        seen = torch.nn.functional.pad(ids, (taps - 1, 0), value=-1).unfold(1, taps, 1) == ids[..., None]
        windows = windows * seen[:, None]
    assert windows.shape[2] == length
    return (windows * weight[:, None]).sum(-1) + bias[:, None], full[:, :, length:]


def emulation(calls):
    """Both kernels, with the checks that the real ones make."""

    def check(x, weight, bias):
        assert weight.dtype == bias.dtype
        assert bias.stride(0) == 1
        assert 2 <= weight.shape[1] <= 4

    def sequence(x, weight, bias=None, seq_idx=None, initial_states=None):
        calls.append("sequence")
        x, weight, bias = near(x), near(weight), near(bias)
        check(x, weight, bias)
        assert x.stride(1) == 1
        assert x.stride(2) > 1
        assert x.shape[1] % 8 == x.stride(0) % 8 == x.stride(2) % 8 == 0
        if seq_idx is not None:
            assert initial_states is None
            assert seq_idx.dtype == torch.int32
            assert seq_idx.is_contiguous()
            assert seq_idx.shape == (x.shape[0], x.shape[2])
        before = x.new_zeros(*x.shape[:2], weight.shape[1] - 1)
        if initial_states is not None:
            before = near(initial_states)
            assert before.dtype == x.dtype
            assert before.stride(1) == 1
            assert before.shape == (*x.shape[:2], weight.shape[1] - 1)
        return convolve(x, before, weight, bias, None if seq_idx is None else near(seq_idx))[0].as_subclass(OnCuda)

    def token(x, conv_state, weight, bias=None):
        calls.append("token")
        x, weight, bias = near(x), near(weight), near(bias)
        check(x, weight, bias)
        state = near(conv_state)
        assert state.dtype == x.dtype
        y, left = convolve(x[..., None], state, weight, bias)
        state.copy_(left.clone())
        return y[..., 0].as_subclass(OnCuda)

    return sequence, token


@pytest.mark.parametrize("taps", [2, 4])
@pytest.mark.parametrize("case", ["plain", "past", "padded", "padded past", "packed", "packed and padded", "token"])
def test_on_cuda_the_kernels_are_handed_what_they_take(case, taps, monkeypatch):
    torch.manual_seed(0)
    length = 1 if case == "token" else 11
    x, weight, bias = torch.randn(3, length, 8), torch.randn(8, taps), torch.randn(8)
    valid = torch.rand(3, length) < 0.6 if "padded" in case else None
    ids = (torch.rand(3, length) < 0.3).cumsum(1) if "packed" in case else None
    past = torch.randn(3, 8, taps - 1) if "past" in case or case == "token" else None  # not channel by channel
    how = {"valid": valid, "documents": ids}
    kept = copy.deepcopy(past)
    with torch.no_grad():
        expected = causal_conv(x, weight, bias, past=past, **how)
        calls = []
        monkeypatch.setattr(conv_kernels, "_found", lambda: emulation(calls))
        got = causal_conv(x.as_subclass(OnCuda), weight, bias, past=past, **how)
    assert calls == ["token" if case == "token" else "sequence"]
    torch.testing.assert_close([near(t) for t in got], list(expected), atol=1e-5, rtol=1e-5)
    assert past is None or torch.equal(past, kept)


def test_gradients_pass_the_kernels(monkeypatch):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 6, 8), torch.randn(8, 4), torch.randn(8)
    past = torch.randn(2, 8, 3)
    leaves = [t.requires_grad_() for t in (x, weight, bias, past)]

    def gradients(first):
        y, left = causal_conv(first, weight, bias, past=past)
        return torch.autograd.grad((y.sin().sum() + left.cos().sum()).as_subclass(torch.Tensor), leaves)

    expected = gradients(x)
    monkeypatch.setattr(conv_kernels, "_found", lambda: emulation([]))
    got = gradients(x.as_subclass(OnCuda))
    torch.testing.assert_close([near(t) for t in got], list(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("why", ["float64", "taps", "channels", "both", "no package"])
def test_what_the_kernels_cannot_do_is_done_without_them(why, monkeypatch):
    found = None if why == "no package" else emulation([])
    monkeypatch.setattr(conv_kernels, "_found", lambda: found)
    x = torch.randn(1, 5, 7 if why == "channels" else 8, dtype=torch.float64 if why == "float64" else torch.float32)
    weight = torch.randn(x.shape[2], 5 if why == "taps" else 4)
    past = torch.randn(1, x.shape[2], weight.shape[1] - 1)
    ids = torch.zeros(1, 5, dtype=torch.long) if why == "both" else None
    assert not conv_kernels.fits(x.as_subclass(OnCuda), weight, past, ids)


def test_never_imported_for_tensors_on_a_cpu(monkeypatch):
    monkeypatch.setattr(conv_kernels, "_found", lambda: pytest.fail("looked for causal_conv1d"))
    causal_conv(torch.randn(1, 5, 8), torch.randn(8, 4), torch.randn(8))
    assert "causal_conv1d" not in sys.modules


@pytest.mark.gpu
@pytest.mark.skipif(importlib.util.find_spec("causal_conv1d") is None, reason="needs causal-conv1d")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["plain", "past", "padded past", "packed", "token"])
def test_on_cuda(case, dtype):
    """The kernels against our own convolution in float64, within twice the rounding of the dtype."""
    torch.manual_seed(0)
    length = 1 if case == "token" else 300
    x, weight, bias = torch.randn(3, length, 64), torch.randn(64, 4), torch.randn(64)
    valid = torch.rand(3, length) < 0.6 if "padded" in case else None
    ids = (torch.rand(3, length) < 0.03).cumsum(1) if case == "packed" else None
    past = torch.randn(3, 64, 3) if "past" in case or case == "token" else None
    low = [None if t is None else t.to(dtype) for t in (x, weight, bias, past)]
    exact = [None if t is None else t.double() for t in low]
    expected, left = causal_conv(*exact[:3], past=exact[3], valid=valid, documents=ids)
    there = [None if t is None else t.cuda() for t in (*low, valid, ids)]
    assert conv_kernels.fits(there[0], there[1], there[3], there[5])
    with torch.no_grad():
        y, kept = causal_conv(*there[:3], past=there[3], valid=there[4], documents=there[5])
    close = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
    torch.testing.assert_close(y.cpu().double(), expected, **close)
    assert torch.equal(kept.cpu().double(), left)
