"""What the scans' tests share: arguments, and cases drawn by hypothesis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor


def arguments(
    batch: int = 1,
    length: int = 70,
    heads: int = 4,
    size: int = 8,
    groups: int = 2,
    n: int = 16,
    *,
    readers: int = 1,
    decay: float = 0.3,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """x, dt, A, B and C of a scan; dt * A is between -2 * decay and 0."""
    g = torch.Generator().manual_seed(seed)
    normal = [
        torch.randn(batch, length, *tail, generator=g, dtype=dtype)
        for tail in ((heads, size), (groups, n), (groups * readers, n))
    ]
    x, B, C = normal
    return {
        "x": x,
        "dt": torch.rand(batch, length, heads, generator=g, dtype=dtype),
        "A": -2 * decay * torch.rand(heads, generator=g, dtype=dtype),
        "B": B / n**0.5,
        "C": C,
    }


def part(of: dict[str, Tensor], start: int, stop: int | None = None) -> dict[str, Tensor]:
    """The same arguments for some of the tokens."""
    return {k: t if k == "A" else t[:, start:stop] for k, t in of.items()}


@dataclass
class Case:
    arguments: dict[str, Tensor]
    options: dict[str, Any]
    chunk: int | None
    split: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any shape, any chunk, any mixture of steps: none at all, gentle ones, and ones that forget everything."""
    batch, length = draw(st.integers(1, 3)), draw(st.integers(1, 90))
    groups, each = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    readers, each = draw(st.sampled_from([(1, each), (3, 1)]))
    size, n, seed = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(0, 1 << 20))
    of = arguments(batch, length, groups * each, size, groups, n, readers=readers, seed=seed)
    g = torch.Generator().manual_seed(seed + 1)
    kind = torch.randint(draw(st.sampled_from([1, 2, 3])), of["dt"].shape, generator=g)
    of["dt"][kind == 1] = 0
    # With these, dt * A is about -50: as good as nothing of the state is left.
    of["dt"] = torch.where(kind == 2, -50 / of["A"].clamp(max=-1e-3), of["dt"]).clamp(max=100)
    options: dict[str, Any] = {}
    if draw(st.booleans()):
        options["D"] = torch.randn(groups * each, *([size] if draw(st.booleans()) else []), generator=g)
    if draw(st.booleans()):
        options["initial_state"] = torch.randn(batch, groups * each, size, n, generator=g)
    if draw(st.booleans()):
        options["segments"] = torch.randint(3, (batch, length), generator=g).repeat_interleave(4, dim=1)[:, :length]
    chunk = draw(st.sampled_from([None, 1, 3, 16, 64, 500]))
    return Case(of, options, chunk, draw(st.integers(0, length)))
