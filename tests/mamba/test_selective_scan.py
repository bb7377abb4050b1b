"""The scan of Mamba-1 against that of Mamba-2 where they are the same, and against transformers where not."""

from __future__ import annotations

import pytest
import torch

from hf_longctx.mamba import reference, selective_scan
from scan_cases import arguments

CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def channels(length=40, dtype=torch.float32):
    """Arguments in which each channel forgets at its own n rates."""
    of = arguments(2, length, heads=6, size=1, groups=2, n=5, dtype=dtype)
    return of | {"x": of["x"][..., 0], "A": -torch.rand(6, 5, dtype=dtype)}


@pytest.mark.parametrize("segments", [None, torch.arange(40).div(13).long().expand(2, -1)])
def test_equal_rates_make_it_heads_of_one(segments):
    of, D, state = arguments(2, 40, heads=6, size=1, groups=2, n=5), torch.randn(6), torch.randn(2, 6, 1, 5)
    expected, last = reference.ssd(**of, D=D, initial_state=state, segments=segments)
    narrow = of | {"x": of["x"][..., 0], "A": of["A"][:, None].expand(-1, 5)}
    y, final = selective_scan(**narrow, D=D, initial_state=state[:, :, 0], segments=segments, return_final_state=True)
    torch.testing.assert_close((y, final), (expected[..., 0].float(), last[:, :, 0].float()), **CLOSE)


def test_equals_transformers():
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    of, D = channels(), torch.randn(6)
    of["B"], of["C"] = of["B"][:, :, :1], of["C"][:, :, :1]
    flat = (t.transpose(1, 2) for t in (of["x"], of["dt"]))
    B, C = (of[k][:, :, 0].transpose(1, 2) for k in "BC")
    expected = mamba_selective_scan(*flat, of["A"], B, C, D=D, return_last_state=True)
    y, state = selective_scan(**of, D=D, return_final_state=True)
    torch.testing.assert_close((y.transpose(1, 2), state), (expected[0], expected[1]), **CLOSE)


def test_split_and_padding():
    of, cut = channels(), 17
    expected, last = selective_scan(**of, return_final_state=True)
    first, state = selective_scan(**cut_at(of, 0, cut), return_final_state=True)
    rest, state = selective_scan(**cut_at(of, cut, None), initial_state=state, return_final_state=True)
    torch.testing.assert_close((torch.cat([first, rest], 1), state), (expected, last), **CLOSE)
    padded = {k: t if k == "A" else torch.cat([t, torch.randn_like(t)], 1) for k, t in of.items()}
    padded["dt"] = torch.cat([of["dt"], torch.zeros_like(of["dt"])], 1)
    y, state = selective_scan(**padded, return_final_state=True)
    torch.testing.assert_close((y[:, :40], state), (expected, last), **CLOSE)


def test_gradcheck():
    of = channels(6, torch.float64)
    assert torch.autograd.gradcheck(
        lambda *a: selective_scan(*a, return_final_state=True), [t.requires_grad_() for t in of.values()]
    )


def test_nothing_in_nothing_out():
    y, state = selective_scan(**channels(0), return_final_state=True)
    assert (y.shape, state.shape) == ((2, 0, 6), (2, 6, 5))


def cut_at(of, start, stop):
    return {k: t if k == "A" else t[:, start:stop] for k, t in of.items()}
