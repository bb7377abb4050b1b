"""When mamba_ssm's kernels are taken, what they are handed, and whether they agree."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_longctx.mamba import kernels, reference, ssd, ssd_step
from scan_cases import arguments


def installed(*names):
    return all(importlib.util.find_spec(name) for name in names)


def test_never_imported_for_tensors_on_a_cpu(monkeypatch):
    monkeypatch.setattr(kernels, "_found", lambda: pytest.fail("looked for mamba_ssm"))
    of = arguments(1, 5)
    ssd(**of)
    ssd_step(torch.zeros(1, 4, 8, 16), *(t if t.dim() == 1 else t[:, 0] for t in of.values()))
    assert "mamba_ssm" not in sys.modules


@pytest.mark.skipif(installed("mamba_ssm"), reason="mamba_ssm is installed")
def test_a_missing_package_is_named():
    assert "pip install" in kernels._found()


class OnCuda(torch.Tensor):
    """A tensor that says that it is on CUDA."""

    is_cuda = True


@pytest.mark.parametrize(
    ("change", "chunk", "words"),
    [
        ({}, None, None),
        ({}, 64, None),
        ({"x": torch.float64}, None, "float64"),
        ({"n": 512}, None, "512"),
        ({"length": 0}, None, "one token"),
        ({}, 48, "power of 2"),
        ({}, 8, "at least 16"),
    ],
)
def test_what_does_not_fit(monkeypatch, change, chunk, words):
    monkeypatch.setattr(kernels, "_found", lambda: (None, None))
    of = arguments(1, change.get("length", 5), n=change.get("n", 16), dtype=change.get("x", torch.float32))
    reason = kernels.misfit(of["x"].as_subclass(OnCuda), of["B"], chunk)
    assert (reason is None) if words is None else (words in reason)


@pytest.mark.parametrize(("groups", "readers"), [(2, 1), (4, 3)])
def test_dispatch_hands_over_all_arguments(groups, readers, monkeypatch):
    """On CUDA tensors the kernels get everything, in their own names; here the definition plays their part."""

    def scan(x, dt, A, B, C, chunk_size, D, initial_states, seq_idx, return_final_states):
        assert B.shape == C.shape  # the kernels know of no readers
        assert (chunk_size, seq_idx.dtype, return_final_states) == (kernels.CHUNK, torch.int32, True)
        assert seq_idx[:, 0].eq(0).all()  # the kernels take the initial state for that of document 0
        return reference.ssd(x, dt, A, B, C, D=D, initial_state=initial_states, segments=seq_idx)

    def step(state, x, dt, A, B, C, D, dt_bias):
        assert {t.stride(-1) for t in (dt, A, D, dt_bias)} == {0}
        assert A.stride(-2) == 0
        dt, A, D = dt[..., 0], A[:, 0, 0], D[:, 0]
        assert state.is_contiguous()
        assert B.shape == C.shape
        y, final = reference.ssd(*(t[:, None] for t in (x, dt)), A, B[:, None], C[:, None], D=D, initial_state=state)
        state.copy_(final)
        return y[:, 0]

    monkeypatch.setattr(kernels, "_found", lambda: (scan, step))
    of = arguments(2, 30, groups=groups, readers=readers)
    options = {"D": torch.randn(4), "initial_state": torch.randn(2, 4, 8, 16)}
    ids = torch.arange(30).div(7).long().expand(2, -1) + 5
    expected = ssd(**of, **options, segments=ids, return_final_state=True)
    fake = of | {"x": of["x"].as_subclass(OnCuda)}
    got = [t.as_subclass(torch.Tensor).float() for t in ssd(**fake, **options, segments=ids, return_final_state=True)]
    torch.testing.assert_close(got, list(expected), atol=1e-4, rtol=1e-4)
    assert got[1].is_contiguous()  # what decoding changes in place

    one = {k: t if k == "A" else t[:, 0] for k, t in of.items()}
    state, other = options["initial_state"].clone(), options["initial_state"].clone()
    expected = ssd_step(state, **one, D=options["D"])
    got = ssd_step(other, **(one | {"x": one["x"].as_subclass(OnCuda)}), D=options["D"])
    torch.testing.assert_close((got.as_subclass(torch.Tensor).float(), other), (expected, state), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not installed("mamba_ssm", "triton", "einops"), reason="needs mamba_ssm, triton and einops")
def test_equal_in_the_interpreter():
    """Needs no GPU: pip install triton einops, and the Python files of mamba_ssm on the path."""
    path = os.pathsep.join(p for p in sys.path if p)
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parent), path]), "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, here / "interpreted.py"], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["equal"], done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["torch", "mamba_ssm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_cuda(backend, dtype):
    """Within mamba_ssm's own tolerances for its kernels, ours for plain torch."""
    if backend == "mamba_ssm" and not installed("mamba_ssm"):
        pytest.skip("needs mamba_ssm")
    of = arguments(2, 300, heads=8, size=64, n=64)
    of = {k: t if k in ("dt", "A") else t.to(dtype) for k, t in of.items()}
    D, ids = torch.randn(8), torch.arange(300).div(101).long().expand(2, -1)
    expected, last = reference.ssd(**of, D=D, segments=ids)
    on = {k: t.cuda() for k, t in of.items()}
    y, state = ssd(**on, D=D.cuda(), segments=ids.cuda(), backend=backend, return_final_state=True)
    loose = {"atol": 5e-2, "rtol": 3e-2} if dtype == torch.bfloat16 else {"atol": 2e-3, "rtol": 6e-4}
    tight = {"atol": 1e-4, "rtol": torch.finfo(dtype).eps if dtype == torch.bfloat16 else 1e-4}
    close = loose if backend == "mamba_ssm" else tight
    torch.testing.assert_close(y.cpu(), expected.to(dtype), **close)
    torch.testing.assert_close(state.cpu(), last.float(), **close)
    before = state.clone()
    one = {k: t if k == "A" else t[:, 0] for k, t in on.items()}
    y = ssd_step(state, **one, D=D.cuda())
    host = {k: t if k == "A" else t[:, :1].cpu() for k, t in of.items()}
    expected, last = reference.ssd(**host, D=D, initial_state=before.cpu())
    torch.testing.assert_close((y.cpu().float(), state.cpu()), (expected[:, 0].float(), last.float()), **loose)
