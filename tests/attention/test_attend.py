"""The public operator: bad input, and the choice of backend."""

import importlib
import logging
import weakref
from dataclasses import dataclass

import pytest
import torch

from hf_longctx.attention import BACKENDS, attend, backends, check_backend, choose, dense, flash, flex
from hf_longctx.attention.layout import Layout
from hf_longctx.patterns import Block, Dilated, Full, Global, Heads, Pattern, Random, SlidingWindow, parse

# The package gives its function the module's name.
attend_module = importlib.import_module("hf_longctx.attention.attend")

Q, K = torch.randn(2, 4, 10, 8), torch.randn(2, 2, 12, 8)


@pytest.mark.parametrize(
    ("kind", "words", "change"),
    [
        (ValueError, ["backend", "'tilde'", "'tiled'", "reference"], {"backend": "tilde"}),
        (
            ValueError,
            ["flex", "backward on the CPU", "auto"],
            {"backend": "flex", "query": Q.clone().requires_grad_()},
        ),
        (ValueError, ["layer", "1.5"], {"layer": 1.5}),
        (ValueError, ["layer", "-1"], {"layer": -1}),
        (ValueError, ["head size", "at least 1"], {"query": Q[..., :0], "key": K[..., :0]}),
        (TypeError, ["query", "float8", "bfloat16"], {"query": Q.to(torch.float8_e4m3fn)}),
        (ValueError, ["flash", "CUDA", "auto"], {"backend": "flash"}),
        (ValueError, ["flash", "CUDA", "'tiled'"], {"backend": "flash", "pattern": Heads([Full(), Full()])}),
        (ValueError, ["head size", "8 and 6"], {"backend": "tiled", "value": torch.randn(2, 2, 12, 6)}),
        (TypeError, ["pattern", "42", "SlidingWindow"], {"pattern": 42}),
        (ValueError, ["windw"], {"pattern": "windw:4"}),
        (TypeError, ["pattern", "layer"], {"pattern": "0=full;*=window:4"}),
        (TypeError, ["query", "list"], {"query": [1]}),
        (ValueError, ["key", "(2, 12, 8)"], {"key": K[:, 0]}),
        (TypeError, ["query", "int64", "float"], {"query": Q.long()}),
        (ValueError, ["key", "float64", "float32"], {"key": K.double()}),
        (ValueError, ["value", "(2, 2, 11, 8)"], {"value": K[:, :, :11]}),
        (ValueError, ["head size", "(2, 4, 10, 7)"], {"query": Q[..., :7]}),
        (ValueError, ["3 heads", "multiple", "2"], {"query": Q[:, :3]}),
        (ValueError, ["13 rows", "12 keys"], {"query": torch.randn(2, 4, 13, 8)}),
        (TypeError, ["valid", "bool"], {"valid": torch.ones(2, 12)}),
        (ValueError, ["valid", "(2, 10)", "(2, 12)"], {"valid": torch.ones(2, 10, dtype=torch.bool)}),
        (TypeError, ["segments", "float32"], {"segments": torch.ones(2, 12)}),
        (ValueError, ["segments", "(1, 12)"], {"segments": torch.ones(1, 12, dtype=torch.int64)}),
        (TypeError, ["positions", "list"], {"positions": [[1]]}),
        (
            ValueError,
            ["valid", "positions"],
            {"positions": torch.arange(12)[None], "valid": torch.ones(2, 12, dtype=torch.bool)},
        ),
        (TypeError, ["scale", "'big'"], {"scale": "big"}),
        (ValueError, ["scale", "nan"], {"scale": float("nan")}),
        (ValueError, ["3", "2"], {"pattern": Heads([Full(), SlidingWindow(4), Full()])}),
    ],
)
def test_bad_input_is_named(kind, words, change):
    call = {"query": Q, "key": K, "value": K, "pattern": Full()} | change
    with pytest.raises(kind) as caught:
        attend(**call)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_of_the_list_runs_or_says_why(backend, eager_flex):
    try:
        check_backend(SlidingWindow(4), backend, device=Q.device, dtype=Q.dtype)
    except ValueError as error:
        assert f"backend is '{backend}', which cannot compute window:4 here: " in str(error)  # noqa: PT017
        with pytest.raises(ValueError, match=backend):
            attend(Q, K, K, SlidingWindow(4), backend=backend)
    else:
        assert attend(Q, K, K, SlidingWindow(4), backend=backend).shape == Q.shape


def test_choice():
    assert choose(SlidingWindow(64), n=1 << 14)[0] == "tiled"
    assert choose(SlidingWindow(64), n=1 << 14, needs_grad=True)[0] == "tiled"
    assert choose(SlidingWindow(64), n=32)[0] == "dense"
    assert choose(SlidingWindow(64), n=1 << 14, rows=1)[0] == "dense"
    assert choose(Random(1, 64) | Dilated(4, 2), n=1 << 14)[0] == "tiled"
    name, reason = choose(SlidingWindow(64), n=1 << 14, dtype=torch.float8_e5m2)
    assert name == "dense"
    assert "float8" in reason


@pytest.mark.parametrize(
    ("pattern", "missing", "n", "rows", "name"),
    [
        (SlidingWindow(64), (), 1 << 14, None, "flash"),
        (Full(), (), 100, None, "flash"),
        (Full(), (), 1 << 14, 1, "dense"),
        (SlidingWindow(64), ("flash",), 1 << 14, None, "flex"),
        (SlidingWindow(64), ("flash",), 100, None, "dense"),
        (SlidingWindow(64), ("flash", "flex"), 1 << 14, None, "tiled"),
        (SlidingWindow(64) | Global(4), (), 1 << 14, None, "flex"),
        (Dilated(64, 4) | Global(4), (), 1 << 14, None, "tiled"),
        (Heads([Full(), Dilated(64, 4)]), (), 1 << 14, None, "flash|tiled"),
    ],
)
def test_choice_on_cuda(monkeypatch, pattern, missing, n, rows, name):
    """By what the pattern is, and by what is installed."""
    for module in (flash, flex):
        absent = module.__name__.split(".")[-1] in missing
        where = "_no_kernel" if module is flash else "_no_compiler"
        monkeypatch.setattr(module, where, lambda device, absent=absent: "it is missing" if absent else None)
    chosen, reason = choose(pattern, n=n, rows=rows, device="cuda", dtype=torch.bfloat16)
    assert chosen == name
    assert reason


@pytest.mark.parametrize(
    ("text", "dense", "tiled"), [("window:64", 128, 256), ("strided:64,64", 256, 512), ("bigbird", 512, 2048)]
)
def test_short_inputs_go_dense_by_what_the_pattern_costs(text, dense, tiled):
    """The more tiles a pattern lowers to, the longer one call under a mask is the cheaper."""
    assert choose(text, n=dense)[0] == "dense"
    assert choose(text, n=tiled)[0] == "tiled"


def test_auto_passes_over_a_window_kernel_where_keys_are_missing(monkeypatch):
    """Stored keys with gaps: distances in memory are not those of the pattern."""
    monkeypatch.setattr(backends, "preferred", lambda *_: iter([("flash", "first"), ("dense", "second")]))
    positions = torch.tensor([[0, 1, *range(30, 40)]])
    got = attend(Q, K, K, SlidingWindow(4), positions=positions)
    want = attend(Q, K, K, SlidingWindow(4), positions=positions, backend="reference")
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_layers_share_what_is_known_of_their_tokens():
    """The same mask, looked at anew by each layer, is one layout; written to, it is another."""
    mask = torch.ones(2, 1, 1, 12, dtype=torch.bool)
    first, second = (attend_module._layout(10, 12, valid=mask[:, 0, 0]) for _ in range(2))
    assert first is second
    mask[0, 0, 0, :3] = False
    assert attend_module._layout(10, 12, valid=mask[:, 0, 0]).positions[0, 0] == -1
    with torch.inference_mode():
        mask = torch.ones(2, 12, dtype=torch.bool)
        assert attend_module._layout(10, 12, valid=mask) is not attend_module._layout(10, 12, valid=mask)


def test_what_is_known_of_a_tensor_goes_with_it():
    """No table of a decoding step outlives the caller's tensor, and a tensor in its place is another."""
    ids, positions = torch.zeros(2, 12, dtype=torch.long), torch.arange(12)[None].clone()
    known, count = [], len(attend_module._LAYOUTS)
    for documents in (1, 2):
        other = (torch.arange(12) // (12 // documents)).expand(2, 12).contiguous()
        layout = attend_module._layout(1, 12, valid=ids >= 0, segments=other)
        known.append(weakref.ref(layout))
        assert int(layout.documents.max()) == documents - 1
        del layout, other
        assert known[-1]() is None
    for n in range(4, 12):  # a table that is grown into: the last few lengths
        attend_module._layout(1, n, positions=positions[:, :n])
    assert len(attend_module._LAYOUTS[positions]) == 4
    del positions
    assert len(attend_module._LAYOUTS) == count


@pytest.mark.parametrize("rows", [1, 3, 12])
@pytest.mark.parametrize("text", ["window:4", "strided:2,3", "random:1,2", "heads(window:2|full)"])
def test_one_row_of_positions_serves_a_batch_of_documents(rows, text, monkeypatch):
    """How many masks there are follows from both; every backend agrees with each row by itself."""
    monkeypatch.setattr(dense, "_MASK", 12 * 4)
    positions = torch.cat([torch.arange(7), torch.arange(5)])[None]
    segments = torch.stack([torch.arange(12) // 7, torch.arange(12) // 4])
    q = Q.repeat(1, 1, 2, 1)[:, :, -rows:]
    want = torch.cat(
        [attend(q[b : b + 1], K[b : b + 1], K[b : b + 1], text, backend="reference", positions=positions,
                segments=segments[b : b + 1]) for b in range(2)]
    )  # fmt: skip
    for backend in ("auto", "reference", "dense", "tiled"):
        torch.testing.assert_close(
            attend(q, K, K, text, backend=backend, positions=positions, segments=segments), want
        )
    if not text.startswith("heads"):
        layout, pattern = Layout.of(rows, 12, positions=positions, segments=segments), parse(text)
        heads = range(2) if pattern.by_head else range(1)
        seen = layout.visible(pattern, (0, rows), (0, 12), device=Q.device, heads=heads)
        block = flex.block_mask(pattern, layout, Q.device, heads=heads).block
        b, h, r, k = (torch.arange(n).view(*(-1 if i == d else 1 for i in range(4))) for d, n in enumerate(seen.shape))
        assert torch.equal(block.mask_mod(b, h, r, k).expand(seen.shape), seen)


def test_choice_is_logged_once(caplog):
    q = torch.randn(1, 1, 700, 8)
    with caplog.at_level(logging.INFO, logger="hf_longctx.attention.attend"):
        for _ in range(3):
            attend(q, q, q, SlidingWindow(331))
    assert [r.getMessage() for r in caplog.records if "window:331" in r.getMessage()] == [
        "attention window:331: backend tiled (cost follows the visible pairs)"
    ]


def test_text_and_scale():
    a = attend(Q, K, K, "window:3", scale=0.5)
    torch.testing.assert_close(a, attend(Q, K, K, SlidingWindow(3), scale=0.5, backend="reference"))
    assert not torch.allclose(a, attend(Q, K, K, "window:3"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("rows", "keys"), [(12, 12), (1, 12), (3, 300), (300, 300)])
def test_the_dtype_is_the_same_on_every_backend_and_length(backend, rows, keys, eager_flex):
    """The query's; autocast's under autocast, computed in it, with what a model gives it: values in 16 bits."""
    if backend == "flash":
        pytest.skip("needs CUDA")
    q, k, v = torch.randn(1, 4, rows, 8), torch.randn(1, 2, keys, 8), torch.randn(1, 2, keys, 8)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        same = (x.to(dtype) for x in (q, k, v))
        assert attend(*same, SlidingWindow(9) | Global(2), backend=backend).dtype == dtype
    want = attend(*(x.bfloat16() for x in (q, k, v)), SlidingWindow(9), backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        got = attend(q, k, v.bfloat16(), SlidingWindow(9), backend=backend)
        assert torch.is_autocast_enabled("cpu")
        if backend != "flex":
            assert attend(*(x.double() for x in (q, k, v)), SlidingWindow(9), backend=backend).dtype == torch.float64
        with pytest.raises(TypeError, match="int64"):
            attend(q.long(), k, v, SlidingWindow(9), backend=backend)
        with pytest.raises(ValueError, match="key is torch.float32 on cpu, but query is torch.float64"):
            attend(q.double(), k, v, SlidingWindow(9), backend=backend)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, want)
    if backend != "flex":
        q.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            attend(q, k, v, SlidingWindow(9), backend=backend).float().sum().backward()
        assert q.grad.dtype == torch.float32


@pytest.mark.parametrize("text", ["full", "window:16", "block:64", "strided:8,8"])
@pytest.mark.parametrize("scale", [-0.25, 0.0])
def test_a_scale_below_zero_and_zero(text, scale):
    """Torch's causal kernel gives NaN for these; forward and backward are as by the definition."""
    q, k, v = (torch.randn(1, 2, 300, 16, requires_grad=True) for _ in range(3))
    exact = attend(q, k, v, text, scale=scale, backend="reference")
    wanted = torch.autograd.grad(exact.square().sum(), (q, k, v))
    for backend in ("auto", "tiled", "dense"):
        out = attend(q, k, v, text, scale=scale, backend=backend)
        torch.testing.assert_close(out, exact, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.autograd.grad(out.square().sum(), (q, k, v)), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 300])
@pytest.mark.parametrize("backend", ["auto", "dense", "tiled", "reference"])
def test_a_pattern_may_hold_what_has_no_hash(backend, rows):
    @dataclass(frozen=True)
    class Every(Pattern, name=None):
        steps: list[int]

        def allows(self, q, k, *, layer=0, head=0):
            return ((q - k) % self.steps[0] == 0) | (q - k < self.steps[1])

    q, k, v = torch.randn(1, 2, rows, 8), torch.randn(1, 2, 300, 8), torch.randn(1, 2, 300, 8)
    for pattern in (Every([3, 5]), Every([3, 5]) | Global(2), (Every([3, 5]) | Block(8)).within(20)):
        expected = attend(q, k, v, pattern, backend="reference")
        torch.testing.assert_close(attend(q, k, v, pattern, backend=backend), expected)


def test_a_rule_that_reads_its_head_is_asked_for_each():
    class Wider(Pattern, name=None):
        def allows(self, q, k, *, layer=0, head=0):
            return q - k < 3 + 5 * head

    assert Wider.by_head
    q, k, v = torch.randn(1, 4, 60, 8), torch.randn(1, 2, 60, 8), torch.randn(1, 2, 60, 8)
    wanted = attend(q, k, v, Heads([SlidingWindow(3), SlidingWindow(8)]), backend="reference")
    for backend in ("auto", "tiled", "dense", "reference"):
        torch.testing.assert_close(attend(q, k, v, Wider(), backend=backend), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("rule", "kind", "words"),
    [
        (lambda self, q, k: q - k < 4, TypeError, "takes integer tensors q and k that broadcast, layer and head"),
        (lambda self, q, k, layer, head: (q - k < 4).long(), TypeError, "gives torch.int64"),
        (lambda self, q, k, layer, head: (q - k < 4).numpy(), TypeError, "gives ndarray"),
        (lambda self, q, k, layer, head: None, TypeError, "gives NoneType"),
        (lambda self, q, k, layer, head: (q - k < 4)[:3, :3], ValueError, r"gives shape \(3, 3\)"),
        (lambda self, q, k, layer, head: k < int(q), TypeError, r"fails for q of shape \(4, 1\)"),
        (Pattern.allows, TypeError, "must define"),
    ],
)
def test_a_rule_that_cannot_be_asked_is_refused_at_once(rule, kind, words):
    wrong = type("Wrong", (Pattern,), {"allows": rule}, name=None)()
    with pytest.raises(kind, match=words):
        attend(Q, K, K, SlidingWindow(4) | wrong)


def test_values_of_another_head_size():
    v = torch.randn(2, 2, 12, 5)
    assert attend(Q, K, v, Full()).shape == (2, 4, 10, 5)
    torch.testing.assert_close(attend(Q, K, v, Full()), attend(Q, K, v, Full(), backend="reference"))
    long = torch.randn(1, 1, 600, 8)
    assert attend(long, long, long[..., :5], Full()).shape == (1, 1, 600, 5)


def test_nothing_in_nothing_out():
    assert attend(Q[:, :, :0], K, K, Full()).shape == (2, 4, 0, 8)
    assert attend(Q[:0], K[:0], K[:0], Full()).shape == (0, 4, 10, 8)


@pytest.mark.parametrize("backend", ["auto", "tiled", "flash"])
def test_the_meta_device_has_shapes_and_gradients_of_shapes(backend):
    """As torch's own operators do, and bad input is named there too."""
    query, key, value = (x.to("meta", torch.bfloat16) for x in (Q, K, K[..., :5]))
    valid = torch.ones(2, 12, dtype=torch.bool, device="meta")
    out = attend(query.requires_grad_(), key, value, "window:4", backend=backend, valid=valid)
    assert (out.device.type, out.dtype, out.shape) == ("meta", torch.bfloat16, (2, 4, 10, 5))
    assert torch.autograd.grad(out.sum(), query)[0].shape == Q.shape
    with pytest.raises(ValueError, match="only 9 keys"):
        attend(query, key[:, :, :9], value[:, :, :9], "window:4", backend=backend)
