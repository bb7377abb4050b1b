"""YaRN: a ramp in the pair index between plain and interpolated frequencies, and a temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from hf_longctx.rope import checks
from hf_longctx.rope.base import Scaling, default_inv_freq, option


@dataclass(frozen=True, kw_only=True)
class YaRN(Scaling):
    """YaRN as its authors' code and transformers compute it: a ramp in the pair index i (arXiv 2309.00071).

    D(n) = d*ln(L/(2*pi*n))/(2*ln b) is the index of the pair that makes n turns over L; with lo = floor D(beta_fast)
    and hi = ceil D(beta_slow), k = clamp((i-lo)/(hi-lo), 0, 1) and k*f_i/s + (1-k)*f_i. The paper's own ramp, in
    turns, is `NTKByParts`. Cos and sin are multiplied by 0.1*ln s + 1 (eq. 22).

    Attributes:
        beta_fast: Turns above which a pair is left alone.
        beta_slow: Turns below which a pair is fully interpolated.
        attention_factor: Multiplier of cos and sin, in place of the formula.
        mscale: With `mscale_all_dim`, both above 0: the multiplier is M(mscale)/M(mscale_all_dim) with
            M(c) = 0.1*c*ln s + 1 (DeepSeek-V2).
        mscale_all_dim: See `mscale`.
        truncate: Whether lo and hi are rounded outwards; False is gpt-oss's and Llama-2-64k's form.
    """

    name: ClassVar[str] = "yarn"
    beta_fast: float = option(32.0, "positive")
    beta_slow: float = option(1.0, "positive")
    attention_factor: float | None = option(None, "positive")
    mscale: float | None = option(None, "nonnegative")
    mscale_all_dim: float | None = option(None, "nonnegative")
    truncate: bool = option(True, "flag")

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.ascending(self._owner, "beta_slow", self.beta_slow, "beta_fast", self.beta_fast)

    def ramp(self, dim: int, base: float, trained: int) -> tuple[float, float]:
        """Return lo and hi, the pair indices between which frequencies are blended.

        >>> YaRN(4).ramp(128, 10000.0, 4096)
        (20, 46)
        """
        low, high = (
            dim * math.log(trained / (2 * math.pi * turns)) / (2 * math.log(base))
            for turns in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        return max(low, 0), min(high, dim - 1)

    def frequencies(self, dim: int, base: float, trained: int, length: int) -> torch.Tensor:
        """Blend by pair index."""
        plain = default_inv_freq(dim, base)
        low, high = self.ramp(dim, base, trained)
        # A ramp without width becomes a step, as in transformers.
        width = high - low or 0.001
        blend = ((torch.arange(dim // 2, dtype=torch.float64, device="cpu") - low) / width).clamp(0, 1)
        return blend * plain / self.scale(trained) + (1 - blend) * plain

    def attention_scaling(self, trained: int) -> float:
        """Return attention_factor, or M(mscale)/M(mscale_all_dim), or 0.1*ln s + 1.

        >>> round(YaRN(4).attention_scaling(4096), 6)
        1.138629
        """
        scale = self.scale(trained)
        if self.attention_factor is not None:
            return self.attention_factor
        log_scale = 0.1 * math.log(scale)
        if self.mscale and self.mscale_all_dim:
            return (self.mscale * log_scale + 1) / (self.mscale_all_dim * log_scale + 1)
        return log_scale + 1

    def export(self, base: float, dim: int, trained: int) -> dict[str, Any]:
        """Write rope type `yarn`, leaving out options at their defaults."""
        keys = {"rope_type": "yarn", "factor": self.factor, "original_max_position_embeddings": trained}
        options = {spec.name: getattr(self, spec.name) for spec in self.options()}
        return keys | {spec.name: options[spec.name] for spec in self.options() if options[spec.name] != spec.default}
