"""Argument checks for RoPE scalings: each returns the value in its stored type, or raises naming the field."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import Any


def number(owner: str, field: str, value: object) -> float:
    """Accept a finite real number.

    Args:
        owner: Name of the method, for the message.
        field: Name of the field, for the message.
        value: What the caller gave.

    Returns:
        The value as a float.

    Raises:
        TypeError: If it is a bool or no real number.
        ValueError: If it is not finite.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(
            f"{owner}: {field} must be a number, got {value!r} ({type(value).__name__}); pass an int or float"
        )
    try:
        accepted = float(value)
    except OverflowError:
        accepted = math.inf
    if not math.isfinite(accepted):
        raise ValueError(f"{owner}: {field} must be finite, got {value!r}; pass an ordinary int or float")
    return accepted


def factor(owner: str, field: str, value: object) -> float:
    """Accept a finite number of at least 1; raises as `number` does, and ValueError below 1."""
    accepted = number(owner, field, value)
    if accepted < 1:
        raise ValueError(
            f"{owner}: {field} must be at least 1, got {value!r}; a scaling extends the trained window by this factor"
        )
    return accepted


def positive(owner: str, field: str, value: object) -> float:
    """Accept a finite number above 0; raises as `number` does, and ValueError at or below 0."""
    accepted = number(owner, field, value)
    if accepted <= 0:
        raise ValueError(f"{owner}: {field} must be above 0, got {value!r}; pass a positive number or leave it out")
    return accepted


def nonnegative(owner: str, field: str, value: object) -> float:
    """Accept a finite number of at least 0; raises as `number` does, and ValueError below 0."""
    accepted = number(owner, field, value)
    if accepted < 0:
        raise ValueError(f"{owner}: {field} must be at least 0, got {value!r}; pass 0 or more, or leave it out")
    return accepted


def flag(owner: str, field: str, value: object) -> bool:
    """Accept a bool; raises TypeError for anything else."""
    if not isinstance(value, bool):
        raise TypeError(f"{owner}: {field} must be True or False, got {value!r} ({type(value).__name__})")
    return value


def positives(owner: str, field: str, value: object) -> tuple[float, ...]:
    """Accept a non-empty sequence of finite numbers above 0, stored as a tuple.

    Raises:
        TypeError: If it is no sequence, or an entry is no number.
        ValueError: If it is empty, or an entry is not finite or not above 0.
    """
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(f"{owner}: {field} must be a list of numbers, got {value!r} ({type(value).__name__})")
    accepted = tuple(positive(owner, f"{field}[{i}]", entry) for i, entry in enumerate(value))
    if not accepted:
        raise ValueError(f"{owner}: {field} is empty; give one positive number for each rotary pair (dim/2 of them)")
    return accepted


def size(owner: str, field: str, value: object) -> int:
    """Accept an integer of at least 1; raises TypeError for a bool or non-integer, ValueError below 1."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(
            f"{owner}: {field} must be an integer, got {value!r} ({type(value).__name__}); count in tokens"
        )
    accepted = int(value)
    if accepted < 1:
        raise ValueError(f"{owner}: {field} must be at least 1, got {value!r}")
    return accepted


def ascending(owner: str, low_name: str, low: float, high_name: str, high: float) -> None:
    """Check the two ends of a ramp; raises ValueError unless low is below high."""
    if low >= high:
        raise ValueError(
            f"{owner}: {high_name} must be above {low_name}, got {high_name}={high:g} and {low_name}={low:g}; "
            "they are the two ends of a ramp"
        )


def rotary(owner: str, dim: object, base: object, trained: object) -> tuple[int, float, int]:
    """Check the three numbers of a model's RoPE.

    Args:
        owner: Name of the method, for the message.
        dim: Rotary dimension of a head, even and at least 2.
        base: The `rope_theta`, finite and above 1 (at 1 every pair would turn alike).
        trained: Length the model was trained on, in tokens, at least 1.

    Returns:
        The same three as int, float and int.

    Raises:
        TypeError: If one is a bool or of another type.
        ValueError: If one is out of range.
    """
    accepted_dim = size(owner, "dim", dim)
    if accepted_dim % 2:
        raise ValueError(
            f"{owner}: dim must be even, got {dim}; RoPE turns pairs, so pass the rotated part of a head "
            "(int(head_dim * partial_rotary_factor))"
        )
    accepted_base = number(owner, "base", base)
    if accepted_base <= 1:
        raise ValueError(f"{owner}: base must be above 1, got {base!r}; pass the model's rope_theta, such as 10000")
    return accepted_dim, accepted_base, size(owner, "trained", trained)


KINDS: dict[str, Callable[[str, str, Any], Any]] = {
    "number": number,
    "factor": factor,
    "positive": positive,
    "nonnegative": nonnegative,
    "flag": flag,
    "positives": positives,
}
"""What an option of a method may hold, by the name that `base.option` takes."""
