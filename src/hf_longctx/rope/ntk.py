"""NTK-aware scaling, fixed and dynamic: a raised base, so that fast pairs keep their turns and slow ones stretch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from hf_longctx.rope import checks
from hf_longctx.rope.base import Scaling, default_inv_freq


def ntk_base(base: float, scale: float, dim: int) -> float:
    """Raise the base so that the last pair slows by `scale` and the first not at all: b * s^(d/(d-2)).

    bloc97's NTK-aware scaling, in Peng et al. 2023, arXiv 2309.00071, eq. 16.

    Raises:
        ValueError: If dim is below 4, where first and last pair are one.

    >>> round(ntk_base(10000.0, 4.0, 128), 4)
    40889.9424
    """
    if dim < 4:
        raise ValueError(f"NTK scaling needs a rotary dim of at least 4, got {dim}; use linear or yarn for this model")
    return base * scale ** (dim / (dim - 2))


@dataclass(frozen=True)
class NTK(Scaling):
    """NTK-aware scaling with a fixed factor: f_i * s^(-2i/(d-2)), a raised base (arXiv 2309.00071, eq. 16).

    transformers has no such type; it is exported as `default` with the raised theta, which is exact everywhere.

    >>> NTK(4).parameters({"rope_theta": 10000.0}, dim=128, trained=4096)["rope_type"]
    'default'
    """

    name: ClassVar[str] = "ntk"

    def frequencies(self, dim: int, base: float, trained: int, length: int) -> torch.Tensor:
        """Return the default frequencies of the raised base."""
        return default_inv_freq(dim, ntk_base(base, self.scale(trained), dim))

    def export(self, base: float, dim: int, trained: int) -> dict[str, Any]:
        """Write rope type `default` with the raised theta."""
        return {"rope_type": "default", "rope_theta": ntk_base(base, self.scale(trained), dim)}


@dataclass(frozen=True)
class DynamicNTK(Scaling):
    """NTK-aware scaling that grows with the length l: base b * (s*l/L - (s-1))^(d/(d-2)), l at least L.

    emozilla's Dynamic NTK (arXiv 2309.00071, section 3.3), as transformers' `dynamic`. Factor 1 is the paper's form, a
    stretch of l/L; larger factors stretch further than l/L and are no extension ratio. It follows the length, so it
    takes no target. transformers reads L from `max_position_embeddings`: raising that would switch it off.

    >>> str(DynamicNTK())
    'dynamic:1'
    """

    name: ClassVar[str] = "dynamic"
    length_dependent: ClassVar[bool] = True
    factor: float | None = 1.0
    target: int | None = field(default=None, init=False)

    def base_at(self, dim: int, base: float, trained: int, length: int) -> float:
        """Return the base used for a sequence of `length` tokens.

        >>> round(DynamicNTK(4).base_at(128, 10000.0, 4096, 8192), 3)
        51293.787
        """
        factor = self.scale(trained)
        return ntk_base(base, factor * max(length, trained) / trained - (factor - 1), dim)

    def frequencies(self, dim: int, base: float, trained: int, length: int) -> torch.Tensor:
        """Return the default frequencies of the base that belongs to `length`."""
        return default_inv_freq(dim, self.base_at(dim, base, trained, length))

    def export(self, base: float, dim: int, trained: int) -> dict[str, Any]:
        """Write rope type `dynamic`, which takes no original_max_position_embeddings."""
        return {"rope_type": "dynamic", "factor": self.factor}

    def max_positions(self, trained: int, current: int) -> int:
        """Return the trained length: what an unscaled config has already, and where growth must start."""
        return checks.size(self._owner, "trained", trained)
