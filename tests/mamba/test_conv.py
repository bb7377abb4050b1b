"""The convolution before the scan against its definition, token by token."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
