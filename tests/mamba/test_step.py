"""One token at a time equals the whole."""

from __future__ import annotations

import pytest
import torch

from hf_longctx.mamba import reference, ssd_step
from scan_cases import arguments


@pytest.mark.parametrize(("groups", "readers"), [(1, 1), (2, 1), (4, 1), (4, 3)])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("skip", [None, (4,), (4, 8)])
@torch.no_grad()
def test_equals_the_loop(batch, groups, readers, skip):
    of, D = arguments(batch, 12, groups=groups, readers=readers), None if skip is None else torch.randn(skip)
    initial = torch.randn(batch, 4, 8, 16)
    expected, last = reference.ssd(**of, D=D, initial_state=initial)
    state = initial.clone()
    y = torch.stack([ssd_step(state, **at(of, t), D=D) for t in range(12)], dim=1)
    torch.testing.assert_close((y, state), (expected.float(), last.float()), atol=1e-5, rtol=1e-5)


def test_dt_0_freezes_a_row():
    of = at(arguments(2, 1), 0)
    of["dt"][1] = 0
    state = torch.randn(2, 4, 8, 16)
    before = state.clone()
    ssd_step(state, **of)
    assert torch.equal(state[1], before[1])
    assert not torch.equal(state[0], before[0])


def test_low_precision_and_autocast():
    """The state stays float32 and is not rounded."""
    of = at(arguments(2, 1), 0)
    low = {k: t if k in ("dt", "A") else t.bfloat16() for k, t in of.items()}
    state = torch.zeros(2, 4, 8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = ssd_step(state, **low)
    expected = low["dt"].float()[..., None, None] * low["x"].float()[..., None]
    expected = expected * low["B"].float().repeat_interleave(2, dim=1)[:, :, None]
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(state, expected)


def test_views_of_a_longer_sequence_serve():
    of = arguments(2, 6)
    state, other = torch.zeros(2, 4, 8, 16), torch.zeros(2, 4, 8, 16)
    turned = {k: t if k == "A" else t.transpose(0, 1).contiguous().transpose(0, 1) for k, t in of.items()}
    torch.testing.assert_close(ssd_step(state, **at(turned, 3)), ssd_step(other, **at(of, 3)))


def at(of, t):
    return {k: x if k == "A" else x[:, t] for k, x in of.items()}
