"""Numbers and dtypes that a training run is asked for: refused by name."""

from __future__ import annotations

import math
from typing import Any


def whole(name: str, value: Any) -> None:
    """Raise unless a number is left out (None), or a whole one of at least 1.

    Raises:
        ValueError: anything else.

    >>> whole("batch", 0)
    Traceback (most recent call last):
    ValueError: batch is 0: it must be a whole number, at least 1
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}: it must be a whole number, at least 1")


def positive(name: str, value: Any) -> None:
    """Raise unless a number is left out (None), or a finite one above 0.

    Raises:
        ValueError: anything else.

    >>> positive("learning_rate", 0.0)
    Traceback (most recent call last):
    ValueError: learning_rate is 0.0: it must be a finite number above 0
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} is {value!r}: it must be a finite number above 0")


def unquantized(config: Any) -> None:
    """Raise for a model whose weights are quantised.

    Args:
        config: of a transformers model.

    Raises:
        ValueError: it is.
    """
    if getattr(config, "quantization_config", None):
        raise ValueError(
            "the model's weights are quantised, which extend can neither train nor merge into: load it in bfloat16, "
            "or train an adapter with a trainer of your own on a patched model and save it with "
            "hf_longctx.training.save_adapter"
        )


def trainable(dtype: Any) -> None:
    """Raise for a dtype of weights that training would break; None is left to the model.

    Raises:
        ValueError: float16.

    >>> trainable("float16")
    Traceback (most recent call last):
    ValueError: dtype is float16, in which gradients vanish: choose bfloat16 or float32
    """
    if str(dtype).removeprefix("torch.") == "float16":
        raise ValueError("dtype is float16, in which gradients vanish: choose bfloat16 or float32")
