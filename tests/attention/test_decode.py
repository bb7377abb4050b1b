"""A few new tokens against many keys: the same numbers, and only the visible keys are read."""

import pytest
import torch

from attention_cases import error
from hf_longctx.attention import attend
from hf_longctx.attention.decode import spans_of
from hf_longctx.patterns import Block, Dilated, Full, Global, Random, SlidingWindow, Strided

PATTERNS = [
    Full(),
    SlidingWindow(20),
    SlidingWindow(20) | Global(4),
    Global(3),
    Block(16, 1),
    Dilated(4, 3),
    Strided(4, 8),
    Random(2, 8),
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 8])
@pytest.mark.parametrize("where", ["plain", "positions", "left", "evicted", "segments"])
def test_decode_equals_the_last_rows_of_the_oracle(pattern, rows, where):
    rng = torch.Generator().manual_seed(rows)
    n = 300
    q, k, v = (torch.randn(2, h, n, 16, generator=rng) for h in (4, 2, 2))
    at = torch.arange(n)
    how = {
        "plain": {},
        "positions": {"positions": at[None]},
        "left": {"valid": at >= torch.tensor([[250], [7]])},
        "evicted": {"positions": (at + 1000 * (at >= 4))[None]},
        "segments": {"segments": (at >= 296).long()[None].expand(2, n)},
    }[where]
    whole = attend(q, k, v, pattern, backend="reference", **how)
    last = attend(q[:, :, -rows:], k, v, pattern, **how)
    assert error(last, whole[:, :, -rows:]) < 2e-6


@pytest.mark.parametrize("pattern", [SlidingWindow(20), SlidingWindow(20) | Global(4), Block(16, 1)], ids=str)
@pytest.mark.parametrize("padded", [False, True])
def test_only_visible_keys_are_read(pattern, padded):
    """All other keys are NaN, and an operation count would see them."""
    n = 5000
    at = torch.arange(n)
    valid = at >= torch.tensor([[10], [300]]) if padded else torch.ones(2, n, dtype=torch.bool)
    positions = torch.where(valid, valid.cumsum(1) - 1, -1)
    seen = (positions >= 0) & pattern.allows(positions[:, -1:], positions.clamp(min=0))
    k = torch.randn(2, 1, n, 8).masked_fill(~seen[:, None, :, None], float("nan"))
    out = attend(torch.randn(2, 2, 1, 8), k, k, pattern, valid=valid if padded else None)
    assert out.isfinite().all()


def test_spans():
    rows = torch.tensor([100, 101])
    assert spans_of(Full(), rows) == [(0, 102)]
    assert spans_of(Block(50), rows) == [(100, 102)]
    assert spans_of(Dilated(4, 3), rows) is None
    assert spans_of(Random(1, 8), rows) is None


def test_a_row_that_sees_nothing_is_zero_and_differentiable():
    class Never(type(Full()), name=None):
        def rows(self, q, *, layer=0, head=0):
            from hf_longctx.patterns.rows import Rows

            return Rows(q)

        def allows(self, q, k, *, layer=0, head=0):
            return torch.zeros(torch.broadcast_shapes(q.shape, k.shape), dtype=torch.bool)

    q, k = torch.randn(1, 1, 1, 8, requires_grad=True), torch.randn(1, 1, 50, 8, requires_grad=True)
    out = attend(q, k, k, Never())
    assert (out == 0).all()
    out.sum().backward()
    assert (q.grad == 0).all()
    assert k.grad is None or (k.grad == 0).all()
