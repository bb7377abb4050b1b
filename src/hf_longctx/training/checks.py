"""Numbers that a training run is asked for: refused by name before anything is loaded."""

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
