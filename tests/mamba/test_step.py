"""One token at a time equals the whole."""

from __future__ import annotations

import sys

import pytest
import torch

from hf_longctx.mamba import fused_step, reference, ssd_step
from scan_cases import arguments


@pytest.fixture(params=["torch", "numba"])
def backend(request):
    if request.param == "numba":
        pytest.importorskip("numba", reason="needs numba: pip install 'hf_longctx[numba]'")
    return request.param


@pytest.mark.parametrize(("groups", "readers"), [(1, 1), (2, 1), (4, 1), (4, 3)])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("skip", [None, (4,), (4, 8)])
@torch.no_grad()
def test_equals_the_loop(batch, groups, readers, skip, backend):
    of, D = arguments(batch, 12, groups=groups, readers=readers), None if skip is None else torch.randn(skip)
    initial = torch.randn(batch, 4, 8, 16)
    expected, last = reference.ssd(**of, D=D, initial_state=initial)
    state = initial.clone()
    y = torch.stack([ssd_step(state, **at(of, t), D=D, backend=backend) for t in range(12)], dim=1)
    torch.testing.assert_close((y, state), (expected.float(), last.float()), atol=1e-5, rtol=1e-5)


def test_dt_0_freezes_a_row(backend):
    of = at(arguments(2, 1), 0)
    of["dt"][1] = 0
    state = torch.randn(2, 4, 8, 16)
    before = state.clone()
    ssd_step(state, **of, backend=backend)
    assert torch.equal(state[1], before[1])
    assert not torch.equal(state[0], before[0])


def test_low_precision_and_autocast(backend):
    """The state stays float32 and is not rounded."""
    of = at(arguments(2, 1), 0)
    low = {k: t if k in ("dt", "A") else t.bfloat16() for k, t in of.items()}
    state = torch.zeros(2, 4, 8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = ssd_step(state, **low, backend=backend)
    expected = low["dt"].float()[..., None, None] * low["x"].float()[..., None]
    expected = expected * low["B"].float().repeat_interleave(2, dim=1)[:, :, None]
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(state, expected)


def test_views_of_a_longer_sequence_serve(backend):
    of = arguments(2, 6)
    state, other = torch.zeros(2, 4, 8, 16), torch.zeros(2, 4, 8, 16)
    turned = {k: t if k == "A" else t.transpose(0, 1).contiguous().transpose(0, 1) for k, t in of.items()}
    y = ssd_step(state, **at(turned, 3), backend=backend)
    torch.testing.assert_close(y, ssd_step(other, **at(of, 3), backend=backend))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_a_number_is_seen(backend, bad):
    """Sums in another order must not hide it, and the other row does not catch it."""
    of = at(arguments(2, 1), 0)
    of["x"][0, 0, 0] = bad
    y = ssd_step(torch.zeros(2, 4, 8, 16), **of, backend=backend)
    assert not y[0, 0, 0].isfinite()
    assert y[1].isfinite().all()


def test_float64_and_parameters(backend):
    of = {k: torch.nn.Parameter(t) for k, t in at(arguments(1, 1, dtype=torch.float64), 0).items()}
    D, initial = torch.nn.Parameter(torch.randn(4)), torch.randn(1, 4, 8, 16, dtype=torch.float64)
    with torch.no_grad():
        y = ssd_step(initial.clone(), **of, D=D, backend=backend)
        expected = reference.ssd(
            **{k: t if k == "A" else t[:, None] for k, t in of.items()}, D=D, initial_state=initial
        )
    torch.testing.assert_close(y, expected[0][:, 0], atol=1e-12, rtol=1e-12)


def test_torch_is_taken_where_the_kernel_is_not_to_be_had(monkeypatch):
    """Unless it was asked for by name."""
    of, state = at(arguments(1, 1), 0), torch.zeros(1, 4, 8, 16)
    monkeypatch.setitem(sys.modules, "numba", None)  # importing it fails then
    monkeypatch.setattr(fused_step, "_found", fused_step._found.__wrapped__)
    y = ssd_step(state.clone(), **of)
    assert torch.equal(y, ssd_step(state.clone(), **of, backend="torch"))
    with pytest.raises(ValueError, match=r"numba cannot be used.*pip install 'hf_longctx\[numba\]'.*backend='auto'"):
        ssd_step(state, **of, backend="numba")
    assert not state.any()


def test_what_the_kernel_does_not_take_goes_through_torch(monkeypatch):
    class Counted(torch.Tensor):
        """Any subclass: numba would see its memory and not what it stands for."""

    monkeypatch.setattr(fused_step, "step", lambda *_: pytest.fail("the kernel was taken"))
    of = {k: t.as_subclass(Counted) for k, t in at(arguments(1, 1), 0).items()}
    assert ssd_step(torch.zeros(1, 4, 8, 16), **of).isfinite().all()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(fused_step, "SMALL", 100)
    assert ssd_step(torch.zeros(1, 4, 8, 16), **at(arguments(1, 1), 0)).isfinite().all()


def at(of, t):
    return {k: x if k == "A" else x[:, t] for k, x in of.items()}
