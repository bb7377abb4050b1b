"""NTK-by-parts and Llama 3.1's scaling: one ramp in turns over the trained window, with different bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from hf_longctx.rope import checks
from hf_longctx.rope.base import Scaling, default_inv_freq, option


def _by_parts(dim: int, base: float, trained: int, scale: float, low: float, high: float) -> torch.Tensor:
    """Interpolate pairs below `low` turns over the trained window, keep those above `high`, blend between."""
    plain = default_inv_freq(dim, base)
    turns = trained * plain / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - keep) * plain / scale + keep * plain


@dataclass(frozen=True, kw_only=True)
class NTKByParts(Scaling):
    """NTK-by-parts, the ramp of the YaRN paper in turns r_i = L*f_i/2pi (arXiv 2309.00071, eqs. 17 to 20).

    g = clamp((r_i - alpha)/(beta - alpha), 0, 1), then (1-g)*f_i/s + g*f_i. Exported as `llama3`, the same formula.

    Attributes:
        alpha: Turns at and below which a pair is fully interpolated.
        beta: Turns at and above which a pair is left alone.
    """

    name: ClassVar[str] = "by-parts"
    alpha: float = option(1.0, "positive")
    beta: float = option(32.0, "positive")

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.ascending(self._owner, "alpha", self.alpha, "beta", self.beta)

    def frequencies(self, dim: int, base: float, trained: int, length: int) -> torch.Tensor:
        """Blend by turns."""
        return _by_parts(dim, base, trained, self.scale(trained), self.alpha, self.beta)

    def export(self, base: float, dim: int, trained: int) -> dict[str, Any]:
        """Write rope type `llama3` with alpha and beta as its low and high frequency factors."""
        return _llama3_keys(self.scale(trained), trained, self.alpha, self.beta)


@dataclass(frozen=True, kw_only=True)
class Llama3(Scaling):
    """Llama 3.1's scaling: by parts in turns, with bounds 1 and 4 (arXiv 2407.21783; Meta's released code).

    Attributes:
        low_freq_factor: Turns at and below which a pair is fully interpolated.
        high_freq_factor: Turns at and above which a pair is left alone.
    """

    name: ClassVar[str] = "llama3"
    low_freq_factor: float = option(1.0, "positive")
    high_freq_factor: float = option(4.0, "positive")

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.ascending(
            self._owner, "low_freq_factor", self.low_freq_factor, "high_freq_factor", self.high_freq_factor
        )

    def frequencies(self, dim: int, base: float, trained: int, length: int) -> torch.Tensor:
        """Blend by turns."""
        return _by_parts(dim, base, trained, self.scale(trained), self.low_freq_factor, self.high_freq_factor)

    def export(self, base: float, dim: int, trained: int) -> dict[str, Any]:
        """Write rope type `llama3`."""
        return _llama3_keys(self.scale(trained), trained, self.low_freq_factor, self.high_freq_factor)


def _llama3_keys(factor: float, trained: int, low: float, high: float) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "factor": factor,
        "original_max_position_embeddings": trained,
        "low_freq_factor": low,
        "high_freq_factor": high,
    }
