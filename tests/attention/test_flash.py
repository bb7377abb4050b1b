"""The flash backend, with the kernel replaced by a dense emulation: packing, bounds, and what is refused."""

import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import flash_emulation
from attention_cases import Case, cases, error, gradients
from hf_longctx.attention import attend, flash
from hf_longctx.attention.layout import Layout
from hf_longctx.attention.request import Request
from hf_longctx.patterns import Dilated, Full, Global, Heads, SlidingWindow, Windowed, gallery
from hf_longctx.patterns.combine import Union

CUDA = torch.device("cuda")
EMULATED = {
    "flash_attn": flash._flash_attn(flash_emulation.flash_attn_varlen_func),
    "flash_attn 3": flash._flash_attn(lambda *a, **k: (flash_emulation.flash_attn_varlen_func(*a, **k), None)),
    "varlen": flash._torch_varlen,
}
WINDOWS = st.one_of(
    st.just(Full()),
    st.builds(SlidingWindow, st.integers(1, 150)),
    st.builds(lambda a, b: Union.of(SlidingWindow(a), SlidingWindow(b)), st.integers(1, 40), st.integers(1, 90)),
    st.builds(lambda w: Windowed(Full(), w), st.integers(1, 90)),
)


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    """The kernel of the test's choice in place of an installed one."""
    import torch.nn.attention.varlen as varlen

    monkeypatch.setattr(varlen, "varlen_attn", flash_emulation.varlen_attn)

    def choose(name):
        monkeypatch.setattr(flash, "_kernel", lambda device: flash._Kernel(name, EMULATED[name]))

    choose("flash_attn")
    return choose


def run(case: Case, inputs):
    """The backend on the CPU, past the check of the device."""
    rows, keys = case.query.shape[2], case.key.shape[2]
    layout = Layout.of(rows, keys, **case.where)
    return flash.attend(*inputs, case.pattern, layout, scale=case.query.shape[-1] ** -0.5)


@pytest.mark.parametrize("name", EMULATED)
def test_equal_to_the_reference_in_every_layout(name, emulated):
    emulated(name)

    @given(cases(WINDOWS, lengths=(1, 2, 31, 97, 113)))
    @settings(max_examples=60, deadline=None)
    def check(case: Case) -> None:
        inputs = tuple(x.requires_grad_() for x in case.tensors)
        exact = attend(*inputs, case.pattern, backend="reference", **case.where)
        if flash.misplaced(Layout.of(case.query.shape[2], case.key.shape[2], **case.where), len(case.query)):
            with pytest.raises(ValueError, match="keys are missing between stored ones"):
                run(case, inputs)
            return
        out = run(case, inputs)
        assert error(out, exact) < 2e-6 * max(1, float(exact.detach().abs().max()))
        if exact.requires_grad and bool((~case.blind).any()):
            for a, b in zip(gradients(out, inputs), gradients(exact, inputs)):
                assert error(a, b) < 1e-5 * max(1, float(b.abs().max()))

    check()


def test_keys_that_were_dropped_from_the_front_are_no_gap():
    """What an evicting cache of a window holds: the last keys, at consecutive positions."""
    q, k = torch.randn(1, 2, 5, 16), torch.randn(1, 1, 12, 16)
    positions = torch.arange(40, 52)[None]
    got = flash.attend(q, k, k, SlidingWindow(6), Layout.of(5, 12, positions=positions), scale=0.25)
    assert error(got, attend(q, k, k, SlidingWindow(6), scale=0.25, backend="reference", positions=positions)) < 2e-6
    positions = torch.cat([torch.arange(2), torch.arange(42, 52)])[None]
    assert "not in order" in flash.misplaced(Layout.of(5, 12, positions=positions), 1)


def test_a_window_of_w_keys_has_the_left_bound_w_minus_1():
    bounds = []
    kernel = flash._flash_attn(lambda *a, **how: bounds.append((how["causal"], how["window_size"])) or a[0])
    q = torch.randn(1, 1, 9, 8)
    for pattern in (SlidingWindow(1), SlidingWindow(4), Full()):
        packed = flash.pack(Layout.of(9, 9), 1, q.device)
        kernel(q[0].transpose(0, 1), q[0, 0], q[0, 0], packed, 1.0, flash.window_of(pattern) - 1)
    assert bounds == [(True, (0, 0)), (True, (3, 0)), (True, (-1, -1))]


def test_only_windows_are_windows():
    found = {name: flash.window_of(pattern) for name, pattern in gallery()}
    assert {name for name, window in found.items() if window is not None} == {"full", "window"}
    for pattern in (SlidingWindow(4) | Global(1), Dilated(4, 2), Heads([Full(), SlidingWindow(2)])):
        assert flash.window_of(pattern) is None
    assert flash.window_of(SlidingWindow(3) | SlidingWindow(7)) == 7


def test_each_layout_is_packed_once():
    layout = Layout.of(8, 8, valid=torch.ones(2, 8, dtype=torch.bool))
    cpu = torch.device("cpu")
    assert flash.pack(layout, 2, cpu) is flash.pack(layout, 2, cpu)
    assert flash.pack(Layout.of(8, 8), 2, cpu) is flash.pack(Layout.of(8, 8), 2, cpu)


@pytest.mark.parametrize(
    ("words", "change"),
    [
        (["needs a CUDA device", "cpu", "'tiled'"], {"device": torch.device("cpu")}),
        (["bfloat16, float16", "not float32", "'tiled'"], {"dtype": torch.float32}),
        (["sliding windows", "'flex'"], {"pattern": SlidingWindow(4) | Global(1)}),
        (["64 and 32", "'dense'"], {"head_dim": 64, "value_dim": 32}),
        (["256", "320", "'tiled'"], {"head_dim": 320, "value_dim": 320}),
        (["compute capability 8.0", "7.5"], {"capability": (7, 5)}),
        (["pip install flash-attn"], {"kernel": None}),
    ],
)
def test_what_it_cannot_do_is_said(monkeypatch, words, change):
    settings_ = {"capability": (9, 0), "kernel": object()} | change
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: settings_["capability"])
    monkeypatch.setattr(flash, "_kernel", lambda device: settings_["kernel"])
    flash._no_kernel.cache_clear()
    request = {"pattern": Full(), "device": CUDA, "dtype": torch.bfloat16, "head_dim": 64, "value_dim": 64}
    try:
        assert flash.cannot(Request(**request)) is None or "capability" in change or "kernel" in change
        reason = flash.cannot(Request(**request | {k: v for k, v in change.items() if k in request}))
    finally:
        flash._no_kernel.cache_clear()
    for word in words:
        assert word in reason


@pytest.mark.parametrize(
    ("installed", "capability", "built", "name"),
    [
        ({"flash_attn_interface", "flash_attn"}, (9, 0), True, "flash_attn_interface"),
        ({"flash_attn_interface", "flash_attn"}, (8, 0), True, "flash_attn"),
        (set(), (9, 0), True, "torch.nn.attention.varlen"),
        (set(), (9, 0), False, None),
    ],
)
def test_the_best_installed_kernel_is_taken(monkeypatch, installed, capability, built, name):
    monkeypatch.undo()  # the emulation
    module = types.SimpleNamespace(flash_attn_varlen_func=flash_emulation.flash_attn_varlen_func)
    monkeypatch.setattr(flash.importlib.util, "find_spec", lambda m: m if m in installed else None)
    monkeypatch.setattr(flash.importlib, "import_module", lambda m: module)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: built)
    flash._kernel.cache_clear()
    try:
        found = flash._kernel(CUDA)
    finally:
        flash._kernel.cache_clear()
    assert (found and found.name) == name
