"""Which keys of a config's `rope_parameters` belong to a scaling, and the dict without them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

SCALABLE_TYPES = frozenset({"default", "linear", "dynamic", "yarn", "longrope", "su", "llama3"})
"""The rope types of transformers whose unscaled form is plain RoPE, so that a scaling may replace them."""

SCALING_KEYS = frozenset(
    {
        "rope_type",
        "type",
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
        "short_factor",
        "long_factor",
        "short_mscale",
        "long_mscale",
        "low_freq_factor",
        "high_freq_factor",
    }
)
"""Keys of `rope_parameters` that belong to a scaling; all others (rope_theta, partial_rotary_factor, ...) are kept."""


def without_scaling(owner: str, current: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a flat `rope_parameters` without the keys of a scaling.

    Args:
        owner: Name of the method that asks, for the message.
        current: The dict as the config has it.

    Raises:
        ValueError: If its rope type is no scaled plain RoPE, or it has no rope_theta (as a nested dict has none).

    >>> without_scaling("YaRN", {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4})
    {'rope_theta': 10000.0}
    """
    rope_type = current.get("rope_type", current.get("type", "default"))
    if rope_type not in SCALABLE_TYPES:
        raise ValueError(
            f"{owner}: cannot scale rope_type {rope_type!r}; it must be one of {', '.join(sorted(SCALABLE_TYPES))}, "
            "whose unscaled form is plain RoPE"
        )
    if current.get("rope_theta") is None:
        raise ValueError(
            f"{owner}: rope_parameters has no rope_theta, only {sorted(current)}; pass the model's flat "
            "rope_parameters, or one layer type's entry where they are nested"
        )
    return {key: copy.deepcopy(value) for key, value in current.items() if key not in SCALING_KEYS}
