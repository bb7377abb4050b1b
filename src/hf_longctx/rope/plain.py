"""Plain RoPE and position interpolation: no scaling, and one factor for all pairs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from hf_longctx.rope.base import Scaling, default_inv_freq


@dataclass(frozen=True)
class NoScaling(Scaling):
    """Plain RoPE: takes a native scaling off. It keeps the theta that it finds, even one that NTK has raised.

    >>> NoScaling().parameters({"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}, dim=64, trained=2048)
    {'rope_theta': 10000.0, 'rope_type': 'default'}
    """

    name: ClassVar[str] = "none"
    factor: float | None = field(default=None, init=False)
    target: int | None = field(default=None, init=False)

    def frequencies(self, dim: int, base: float, trained: int, length: int) -> torch.Tensor:
        """Return the default frequencies."""
        return default_inv_freq(dim, base)

    def export(self, base: float, dim: int, trained: int) -> dict[str, Any]:
        """Write rope type `default`."""
        return {"rope_type": "default"}

    def _export_longrope(self, base: float, dim: int, trained: int) -> dict[str, Any]:
        # `default` is accepted wherever `longrope` is.
        return self.export(base, dim, trained)


@dataclass(frozen=True)
class Linear(Scaling):
    """Position interpolation: f_i / s (Chen et al. 2023, arXiv 2306.15595, eq. 4). Rope type `linear`."""

    name: ClassVar[str] = "linear"

    def frequencies(self, dim: int, base: float, trained: int, length: int) -> torch.Tensor:
        """Divide every frequency by the factor."""
        return default_inv_freq(dim, base) / self.scale(trained)

    def export(self, base: float, dim: int, trained: int) -> dict[str, Any]:
        """Write rope type `linear`."""
        return {"rope_type": "linear", "factor": self.factor}
