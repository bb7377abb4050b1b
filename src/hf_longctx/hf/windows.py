"""The window that an attention layer has of its own: one answer for the plan before a run and for the run itself."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Hashable
from functools import cache
from typing import Any, cast

#: What a modeling file imports that masks by a window.
_MASKS = "create_sliding_window_causal_mask"
_SLIDING = "sliding_attention"


def own_window(module: Any) -> int | None:
    """The window of an attention module, in keys, or None.

    Families keep it in different places: some in the mask alone (Qwen2-MoE), some on every module with a layer type
    that says where it holds (EXAONE 4), some as an argument of each call (Mistral). Where the config names layer
    types, these decide. A config may carry `sliding_window` although its model never reads it (Llama): then there is
    none.
    """
    if not _reads(cast("Hashable", type(module))):
        return None
    config = module.config
    kinds = getattr(config, "layer_types", None)
    if kinds and kinds[int(module.layer_idx)] != _SLIDING:
        return None
    held = module.sliding_window if hasattr(module, "sliding_window") else getattr(config, "sliding_window", None)
    return held or None


@cache
def _reads(kind: Any) -> bool:
    """Whether a class passes a window to its attention function, or its model masks by one."""
    code = inspect.unwrap(kind.forward).__code__
    constants = [c for const in code.co_consts for c in (const if isinstance(const, tuple) else (const,))]
    if "sliding_window" in constants or "sliding_window" in code.co_names:
        return True
    return any(hasattr(sys.modules.get(one.__module__), _MASKS) for one in kind.__mro__)
