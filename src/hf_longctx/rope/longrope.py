"""LongRoPE: a searched divisor for each pair, one list for short sequences and one for long."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from hf_longctx.rope.base import Scaling, default_inv_freq, option


@dataclass(frozen=True, kw_only=True)
class LongRoPE(Scaling):
    """LongRoPE: f_i / lambda_i from a searched list, one for lengths up to L, one beyond (arXiv 2402.13753).

    Cos and sin are multiplied by sqrt(1 + ln s/ln L).

    Attributes:
        short_factor: lambda_i for lengths of at most L, one for each pair.
        long_factor: lambda_i for longer ones.
        attention_factor: Multiplier of cos and sin, in place of the formula.

    >>> str(LongRoPE(4, short_factor=[1, 1.02], long_factor=[1, 3.5]))
    'longrope:4,short=1/1.02,long=1/3.5'
    """

    name: ClassVar[str] = "longrope"
    length_dependent: ClassVar[bool] = True
    short_factor: tuple[float, ...] = option((), "positives", text="short")
    long_factor: tuple[float, ...] = option((), "positives", text="long")
    attention_factor: float | None = option(None, "positive")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.short_factor) != len(self.long_factor):
            raise ValueError(
                f"LongRoPE: short_factor and long_factor must have equal lengths, got {len(self.short_factor)} and "
                f"{len(self.long_factor)}; give one number for each rotary pair"
            )

    def frequencies(self, dim: int, base: float, trained: int, length: int) -> torch.Tensor:
        """Divide by the list that belongs to `length`."""
        if len(self.short_factor) != dim // 2:
            raise ValueError(
                f"LongRoPE: short_factor and long_factor have {len(self.short_factor)} entries, but a rotary dim "
                f"of {dim} has {dim // 2} pairs; give {dim // 2} numbers in each"
            )
        divisors = self.long_factor if length > trained else self.short_factor
        return default_inv_freq(dim, base) / torch.tensor(divisors, dtype=torch.float64, device="cpu")

    def attention_scaling(self, trained: int) -> float:
        """Return attention_factor, or sqrt(1 + ln s/ln L).

        Raises:
            ValueError: If the trained length is 1, where the formula has no value.
        """
        scale = self.scale(trained)
        if self.attention_factor is not None:
            return self.attention_factor
        if scale <= 1:
            return 1.0
        if trained < 2:
            raise ValueError(f"LongRoPE: trained must be at least 2, got {trained}; or give attention_factor")
        return math.sqrt(1 + math.log(scale) / math.log(trained))

    def export(self, base: float, dim: int, trained: int) -> dict[str, Any]:
        """Write rope type `longrope` with both lists."""
        keys: dict[str, Any] = {
            "rope_type": "longrope",
            "factor": self.factor,
            "original_max_position_embeddings": trained,
            "short_factor": list(self.short_factor),
            "long_factor": list(self.long_factor),
        }
        return keys if self.attention_factor is None else keys | {"attention_factor": self.attention_factor}

    def _export_longrope(self, base: float, dim: int, trained: int) -> dict[str, Any]:
        return self.export(base, dim, trained)
