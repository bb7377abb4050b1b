"""One token at a time equals the whole."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from hf_longctx.mamba import fused_step, reference, ssd, ssd_step
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
    with pytest.raises(
        ValueError, match=r"numba cannot be imported.*pip install 'hf_longctx\[numba\]'.*backend='auto'"
    ):
        ssd_step(state, **of, backend="numba")
    assert not state.any()


@pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore::torch.jit.TracerWarning")
def test_what_the_kernel_does_not_take_goes_through_torch(monkeypatch):
    class Counted(torch.Tensor):
        """Any subclass: numba would see its memory and not what it stands for."""

    of = at(arguments(1, 1), 0)
    state = torch.randn(1, 4, 8, 16)
    expected = ssd_step(state.clone(), **of, backend="torch")
    monkeypatch.setattr(fused_step, "step", lambda *_: pytest.fail("the kernel was taken"))
    assert torch.equal(ssd_step(state.clone(), **{k: t.as_subclass(Counted) for k, t in of.items()}), expected)
    negated = of | {"x": torch._neg_view(-of["x"])}
    assert torch.equal(ssd_step(state.clone(), **negated), expected)
    one, x = partial(ssd_step, **{k: t for k, t in of.items() if k != "x"}), of["x"]
    mapped = torch.func.vmap(lambda state, x: one(state, x=x))(state[None].clone(), x[None])
    torch.testing.assert_close(mapped[0], expected)
    traced = torch.jit.trace(lambda state, x: one(state.clone(), x=x), (state, x), check_trace=False)
    assert torch.equal(traced(state, x), expected)
    recorded = make_fx(lambda state, x: one(state.clone(), x=x))(state, x)
    assert torch.equal(recorded(state, x), expected)
    with FlopCounterMode(display=False) as counted:
        ssd_step(state.clone(), **of)
    assert counted.get_total_flops() > 0
    with forward_ad.dual_level(), torch.no_grad():
        dual = of | {"x": forward_ad.make_dual(of["x"], torch.ones_like(of["x"]))}
        assert forward_ad.unpack_dual(ssd_step(state.clone(), **dual)).tangent is not None
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(fused_step, "SMALL", 100)
    assert ssd_step(torch.zeros(1, 4, 8, 16), **at(arguments(1, 1), 0)).isfinite().all()


@pytest.mark.parametrize("rows", [1, 17])
def test_compiled_whole_at_any_size(monkeypatch, rows):
    monkeypatch.setattr(fused_step, "SMALL", 1 << 12)
    of, state = at(arguments(rows, 1), 0), torch.randn(rows, 4, 8, 16)
    with torch.no_grad():
        compiled = torch.compile(ssd_step, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(state.clone(), **of), ssd_step(state.clone(), **of))


def test_no_rows(backend):
    assert ssd_step(torch.zeros(0, 4, 8, 16), **at(arguments(0, 1), 0), backend=backend).shape == (0, 4, 8)


@pytest.mark.parametrize("readers", [1, 3])
def test_a_gradient_that_needs_the_old_state_is_refused(backend, readers):
    of = arguments(1, 5, groups=4, readers=readers)
    of["x"].requires_grad_()
    _, state = ssd(**of, return_final_state=True)
    loss = state.square().sum()
    with torch.no_grad():
        ssd_step(state, **at(of, 4), backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inference_mode(backend):
    of = at(arguments(1, 1), 0)
    with torch.inference_mode():
        state = torch.zeros(1, 4, 8, 16)
        assert ssd_step(state, **of, backend=backend).isfinite().all()
    with pytest.raises((RuntimeError, ValueError), match="inference"):
        ssd_step(state, **of, backend=backend)
    with torch.inference_mode():
        assert ssd_step(torch.zeros(1, 4, 8, 16), **of, backend=backend).is_inference()


@pytest.mark.parametrize("damage", [pytest.param("empty", marks=pytest.mark.slow), "no folder"])
def test_a_cache_that_cannot_be_used_costs_no_more_than_compiling(damage, tmp_path):
    """In a process of its own: what numba has loaded stays."""
    pytest.importorskip("numba", reason="needs numba: pip install 'hf_longctx[numba]'")
    folder = tmp_path / "kept"
    if damage == "no folder":
        folder.write_text("a file")
    code = "from hf_longctx.mamba import fused_step as f; import torch; assert callable(f._found(torch.float32))"
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder)}
    for _ in range(2 if damage == "empty" else 1):
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        for file in folder.rglob("*.nb*"):
            file.write_bytes(b"")


def at(of, t):
    return {k: x if k == "A" else x[:, t] for k, x in of.items()}
