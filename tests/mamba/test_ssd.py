"""The chunked scan against its definition, token by token in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from gradients import PROJECTED
from hf_longctx.mamba import chunks, reference, ssd, ssd_step
from peak import Peak
from scan_cases import arguments, cases, part

CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def exact(of, **options):
    y, state = reference.ssd(**of, **options)
    return y.float(), state.float()


def close(got, expected, **tolerance):
    torch.testing.assert_close(got, expected, **(tolerance or CLOSE))


@given(cases())
@settings(max_examples=80, deadline=None)
def test_equals_the_loop(case):
    y, state = ssd(**case.arguments, **case.options, chunk=case.chunk, return_final_state=True)
    close((y, state), exact(case.arguments, **case.options))


@pytest.mark.parametrize("chunk", [None, 1, 3, 64, 130, 1000])
@pytest.mark.parametrize("length", [1, 5, 64, 65, 130])
def test_any_chunk_and_ragged_lengths(length, chunk):
    of = arguments(2, length, heads=6, size=16, groups=3)
    close(ssd(**of, chunk=chunk, return_final_state=True), exact(of))


def test_no_decay_is_causal_linear_attention():
    of = arguments(2, 150, heads=4, groups=4)
    of["A"] = torch.zeros(4)
    scores = torch.einsum("blhn,bshn->bhls", of["C"], of["B"]).tril()
    expected = torch.einsum("bhls,bsh,bshp->blhp", scores, of["dt"], of["x"])
    close(ssd(**of), expected)


def test_decay_of_minus_50_forgets_and_stays_finite():
    """Of the state, exp(-50) is left: each token sees itself, in values and gradients."""
    of = arguments(1, 200, heads=2, groups=1)
    of["dt"] = of["dt"] + 0.5
    of["A"] = torch.full((2,), -100.0)
    of = {k: t.requires_grad_() for k, t in of.items()}
    y = ssd(**of)
    itself = (of["C"] * of["B"]).sum(-1)[..., None] * of["dt"][..., None] * of["x"]
    close(y, itself)
    gradients = torch.autograd.grad(y.square().sum(), list(of.values()))
    expected = torch.autograd.grad(itself.square().sum(), [of[k] for k in ("x", "dt", "B", "C")])
    assert all(g.isfinite().all() for g in gradients)
    close([gradients[i] for i in (0, 1, 3, 4)], list(expected))


def test_a_gentle_token_after_many_that_forget():
    """The sum of dt * A has reached -3000 when the last steps of -0.01 are taken: float32 would lose them."""
    of = arguments(1, 64, heads=1, groups=1)
    of["A"] = torch.tensor([-1.0])
    of["dt"][:, :60] = 50
    of["dt"][:, 60:] = 0.01
    close(ssd(**of, return_final_state=True), exact(of), atol=1e-6, rtol=1e-5)


@given(cases())
@settings(max_examples=30, deadline=None)
def test_any_split_is_the_whole(case):
    """Read in two parts, the first state handed on; then the rest token by token."""
    case.options.pop("segments", None)
    of, D, cut = case.arguments, case.options.get("D"), case.split
    expected, last = exact(of, **case.options)
    first, state = ssd(**part(of, 0, cut), **case.options, chunk=case.chunk, return_final_state=True)
    rest = ssd(**part(of, cut), D=D, initial_state=state, chunk=case.chunk)
    close(torch.cat([first, rest], dim=1), expected)
    steps = [
        ssd_step(state, *(of[k][:, t] for k in ("x", "dt")), of["A"], *(of[k][:, t] for k in "BC"), D=D)
        for t in range(cut, of["x"].shape[1])
    ]
    close(torch.stack([*first.unbind(1), *steps], dim=1), expected)
    close(state, last)


@pytest.mark.parametrize("side", ["left", "right", "inner"])
def test_padding_with_dt_0_changes_nothing(side):
    of = arguments(1, 70)
    real = torch.ones(100, dtype=torch.bool)
    real[{"left": slice(0, 30), "right": slice(70, 100), "inner": torch.arange(3, 93, 3)}[side]] = False
    padded = arguments(1, 100, seed=1) | {"A": of["A"]}
    padded["dt"] = torch.zeros(1, 100, 4)
    for name in ("x", "dt", "B", "C"):
        padded[name][:, real] = of[name]
    initial = torch.randn(1, 4, 8, 16)
    expected, last = ssd(**of, initial_state=initial, return_final_state=True)
    y, state = ssd(**padded, initial_state=initial, return_final_state=True)
    close((y[:, real], state), (expected, last))


def test_packed_equals_separate():
    """Documents differ from row to row, end on and off the chunk's edge, and may take an id again."""
    rows = [[5, 64, 1, 30], [32, 32, 36]]
    ids = torch.stack([torch.arange(len(r)).fmod(2).repeat_interleave(torch.tensor(r)) for r in rows])
    of = arguments(2, 100)
    initial = torch.randn(2, 4, 8, 16)
    y, state = ssd(**of, segments=ids, initial_state=initial, return_final_state=True, chunk=32)
    for i, lengths in enumerate(rows):
        start = 0
        for length in lengths:
            alone = {k: t if k == "A" else t[i : i + 1, start : start + length] for k, t in of.items()}
            given = initial[i : i + 1] if start == 0 else None
            expected, last = ssd(**alone, initial_state=given, return_final_state=True)
            close(y[i : i + 1, start : start + length], expected)
            start += length
        close(state[i : i + 1], last)


def test_readers_of_one_state_equal_a_state_for_each():
    """What query heads that share a key-value head do, without repeating keys and values."""
    of = arguments(2, 100, heads=2, groups=2, readers=3)
    y, state = ssd(**of, return_final_state=True)
    apart = {k: t.repeat_interleave(3, dim=0 if k == "A" else 2) if k != "C" else t for k, t in of.items()}
    expected, states = ssd(**apart, return_final_state=True)
    assert (y.shape, state.shape) == ((2, 100, 6, 8), (2, 2, 8, 16))
    close((y, state), (expected, states[:, ::3]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("projected", PROJECTED)
@pytest.mark.parametrize("segments", [None, torch.tensor([[0, 0, 0, 1, 1, 1, 2]])])
@pytest.mark.parametrize(("chunk", "groups", "readers"), [(3, 1, 1), (64, 1, 1), (3, 2, 2)])
def test_gradcheck(chunk, groups, readers, segments, projected):
    of = arguments(1, 7, heads=2, size=2, groups=groups, n=2, readers=readers, dtype=torch.float64)
    of["A"] -= 0.1
    inputs = [*of.values(), torch.randn(2, dtype=torch.float64), torch.randn(1, 2, 2, 2, dtype=torch.float64)]

    def run(*args):
        *main, D, state = args
        return ssd(*main, D=D, initial_state=state, chunk=chunk, segments=segments, return_final_state=True)

    assert torch.autograd.gradcheck(run, [t.requires_grad_() for t in inputs], fast_mode=projected)


@given(cases())
@settings(max_examples=40, deadline=None)
def test_gradients_equal_those_of_the_loop(case):
    leaves = {k: t.requires_grad_() for k, t in {**case.arguments, **case.options}.items() if k != "segments"}
    call = leaves | {k: t for k, t in case.options.items() if k == "segments"}
    names, inputs = list(leaves), list(leaves.values())
    y, state = ssd(**call, chunk=case.chunk, return_final_state=True)
    wy, ws = torch.randn_like(y), torch.randn_like(state)
    got = torch.autograd.grad((y * wy).sum() + (state * ws).sum(), inputs)
    y, state = reference.ssd(**call)
    expected = torch.autograd.grad((y * wy).sum() + (state * ws).sum(), inputs)
    for name, a, b in zip(names, got, expected):
        assert a.dtype == leaves[name].dtype
        # What was summed bounds the error: a gradient that cancels to little is as exact as one that does not.
        close(a, b, atol=1e-4 * max(1, float(b.abs().max())), rtol=1e-4)


def test_gradient_of_one_result_alone():
    of = {k: t.requires_grad_() for k, t in arguments().items()}
    y, state = ssd(**of, return_final_state=True)
    assert torch.autograd.grad(state.sum(), of["C"], retain_graph=True)[0].abs().max() == 0
    expected = torch.autograd.grad(reference.ssd(**of)[1].sum(), of["B"])[0]
    close(torch.autograd.grad(state.sum(), of["B"])[0], expected)


def test_batch_elements_take_turns(monkeypatch):
    """In float64, where only a wrong row could make a difference."""
    of = {k: t.requires_grad_() for k, t in arguments(5, 40, dtype=torch.float64).items()}
    options = {"D": torch.randn(4, dtype=torch.float64), "segments": (torch.rand(5, 40) < 0.1).cumsum(1)}

    def run():
        y, state = ssd(**of, **options, return_final_state=True, chunk=16)
        return [y, state, *torch.autograd.grad(y.square().sum() + state.sum(), list(of.values()))]

    together = run()
    monkeypatch.setattr(chunks, "_TABLE", 1)
    close(run(), together, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("readers", [1, 3])
@pytest.mark.parametrize("grouped", [False, True])
def test_chunks_read_together_are_those_read_one_by_one(readers, grouped, monkeypatch):
    """In float64, where only a wrong chunk makes a difference; documents begin within chunks and at their edges."""
    heads, groups = (4, 2) if grouped and readers == 1 else (4, 4)
    given = arguments(1, 137, heads=heads, groups=groups, readers=readers, dtype=torch.float64)
    of = {k: t.requires_grad_() for k, t in given.items()}
    segments = torch.tensor([0] * 16 + [1] * 13 + [2] * 3 + [3] * 100 + [4] * 5)[None]
    options = {"D": torch.randn(4, dtype=torch.float64), "initial_state": torch.randn(1, 4, 8, 16).double()}

    def run(**more):
        y, state = ssd(**of, **options, **more, return_final_state=True, chunk=16)
        with torch.no_grad():
            alone = ssd(**of, **options, **more, return_final_state=True, chunk=16)
        return [y, state, *alone, *torch.autograd.grad(y.square().sum() + state.sum(), list(of.values()))]

    for more in ({}, {"segments": segments}):
        monkeypatch.setattr(chunks, "_TOGETHER", (1, 1))
        apart = run(**more)
        for each in (3, 100):
            monkeypatch.setattr(chunks, "_TOGETHER", (each * groups * (heads // groups) * readers * 16 * 16,) * 2)
            close(run(**more), apart, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("train", "together"), [(False, 1), (False, 2), (True, 1), (True, 2)])
def test_memory_does_not_grow_with_length(train, together, monkeypatch):
    """Beside results and gradients, forward needs the same at 8 times the length; training, the root of it more."""
    monkeypatch.setattr(chunks, "_TOGETHER", (together * 4 * 64 * 64,) * 2)  # so many chunks of the heads below

    def extra(length):
        of = arguments(1, length, heads=4, size=32, groups=1, n=32)
        if train:
            of = {k: t.requires_grad_() for k, t in of.items()}
        weight = torch.ones(())
        with Peak(*of.values(), weight) as peak:
            y = ssd(**of)
            if train:
                y.backward(weight.expand_as(y))
        results = y.nbytes + sum(t.grad.nbytes for t in of.values() if t.grad is not None)
        assert peak.largest <= y.nbytes
        return peak.peak - results

    one = 4 * 32 * 64 * 4  # bytes of x in a chunk; the state and its decay table are of the same order
    assert extra(1024) < (30 if train else 12 * together) * one
    growth = extra(8192) - extra(1024)
    # Kept states: one for each sqrt(chunks) chunks, and as many recomputed.
    assert growth <= (2 * 8 * one if train else 0)


def test_autocast_does_not_reach_in():
    of = {k: t.requires_grad_() for k, t in arguments().items()}
    y = ssd(**of)
    expected = [y, *torch.autograd.grad(y.square().sum(), list(of.values()))]
    with torch.autocast("cpu", torch.bfloat16):
        y = ssd(**of)
        got = [y, *torch.autograd.grad(y.square().sum(), list(of.values()))]
    for a, b in zip(got, expected):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_rounds_only_the_ends(dtype):
    of = arguments(2, 200)
    low = {k: t if k in ("dt", "A") else t.to(dtype) for k, t in of.items()}
    y, state = ssd(**low, return_final_state=True)
    expected, last = exact(low)
    assert y.dtype == dtype
    assert state.dtype == torch.float32
    close(state, last)
    close(y, expected.to(dtype), atol=1e-4, rtol=torch.finfo(dtype).eps)


def test_strides_do_not_matter():
    of = arguments(2, 70)
    turned = {k: t if t.dim() < 3 else t.transpose(1, 2).contiguous().transpose(1, 2) for k, t in of.items()}
    turned["x"] = turned["x"].transpose(0, 3).contiguous().transpose(0, 3)
    gradients = []
    for each in (of, turned):
        leaves = {k: t.detach().requires_grad_() for k, t in each.items()}
        gradients.append(torch.autograd.grad(ssd(**leaves).square().sum(), list(leaves.values())))
    close(ssd(**turned), ssd(**of), atol=1e-6, rtol=1e-6)
    close(gradients[1], gradients[0], atol=1e-5, rtol=1e-5)


def test_arguments_are_left_alone():
    of, initial = arguments(), torch.randn(1, 4, 8, 16)
    before = {k: t.clone() for k, t in of.items()} | {"initial_state": initial.clone()}
    ssd(**of, initial_state=initial)
    for k, t in (of | {"initial_state": initial}).items():
        assert torch.equal(t, before[k])


def test_nothing_in_nothing_out():
    initial = torch.randn(1, 4, 8, 16)
    y, state = ssd(**arguments(1, 0), initial_state=initial, return_final_state=True)
    assert y.shape == (1, 0, 4, 8)
    assert torch.equal(state, initial)
    y, state = ssd(**arguments(0, 5), return_final_state=True)
    assert (y.shape, state.shape) == ((0, 5, 4, 8), (0, 4, 8, 16))
    of = {k: t.requires_grad_() for k, t in arguments(1, 0).items()}
    ssd(**of).sum().backward()
    assert of["x"].grad.shape == (1, 0, 4, 8)


def test_equals_transformers():
    from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan, mamba2_selective_state_update

    of, D = arguments(2, 150), torch.randn(4)
    expected, state = mamba2_chunk_scan(*of.values(), chunk_size=64, D=D, return_final_states=True)
    close(ssd(**of, D=D, return_final_state=True), (expected, state))
    x, dt, B, C = (of[k][:, 0] for k in ("x", "dt", "B", "C"))
    other = state.clone()
    rates = of["A"][:, None, None].expand(-1, 8, 16)
    expected = mamba2_selective_state_update(state, x, dt[..., None].expand(-1, -1, 8), rates, B, C, D[:, None])
    close(ssd_step(other, x, dt, of["A"], B, C, D=D), expected)
    close(other, state)
