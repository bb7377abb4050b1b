"""Reads the scaling that a config already has: the inverse of `Scaling.parameters`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from hf_longctx.rope.base import Scaling
from hf_longctx.rope.by_parts import Llama3
from hf_longctx.rope.longrope import LongRoPE
from hf_longctx.rope.ntk import DynamicNTK
from hf_longctx.rope.plain import Linear
from hf_longctx.rope.yarn import YaRN

_METHODS: dict[str, type[Scaling]] = {
    "linear": Linear,
    "dynamic": DynamicNTK,
    "yarn": YaRN,
    "llama3": Llama3,
    "longrope": LongRoPE,
    "su": LongRoPE,
}


def from_parameters(parameters: Mapping[str, Any], *, max_positions: int | None = None) -> Scaling | None:
    """Read the scaling in a config's `rope_parameters`.

    Args:
        parameters: The flat dict, or one layer type's entry where they are nested. The old key `type` and the old name
            `su` are understood.
        max_positions: The config's max_position_embeddings, from which transformers takes the factor where a yarn or
            longrope dict has none.

    Returns:
        The scaling, or None for plain RoPE. A fixed NTK is plain RoPE of a larger theta; by-parts reads as `Llama3`.

    Raises:
        ValueError: If the type is not plain RoPE or a scaling of it, the factor is missing and cannot be derived, or a
            value is out of range.

    >>> str(from_parameters({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}))
    'yarn:4'
    >>> from_parameters({"rope_type": "default", "rope_theta": 10000.0}) is None
    True
    """
    rope_type = parameters.get("rope_type", parameters.get("type", "default"))
    if rope_type == "default":
        return None
    method = _METHODS.get(rope_type)
    if method is None:
        near = difflib.get_close_matches(str(rope_type), _METHODS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"rope_type {rope_type!r} is no scaling known here: {hint}known are {', '.join(_METHODS)}")
    factor = parameters.get("factor")
    if factor is None:
        original = parameters.get("original_max_position_embeddings")
        if method not in (YaRN, LongRoPE) or not original or not max_positions:
            raise ValueError(f"rope_parameters of type {rope_type!r} has no factor, only {sorted(parameters)}; add it")
        # Phi-3 states the stretch by its two lengths; a ratio below 1 means no stretch.
        factor = max(1.0, max_positions / original)
    options = {spec.name: parameters[spec.name] for spec in method.options() if parameters.get(spec.name) is not None}
    return method(factor, **options)
