"""The rule of a pattern, `allows`: whether it tells heads apart, and whether it answers as it should."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from hf_longctx.patterns.base import Pattern

#: Tokens of the grid on which a rule is tried.
_TRIED = 4


def reads_head(rule: Callable[..., Any]) -> bool:
    """Whether a rule's code reads its argument `head`; True where that cannot be known.

    >>> reads_head(lambda self, q, k, *, layer=0, head=0: q - k < 4)
    False
    >>> reads_head(lambda self, q, k, *, layer=0, head=0: q - k < 4 + head)
    True
    """
    code = getattr(rule, "__code__", None)
    if code is None or code.co_flags & inspect.CO_VARKEYWORDS or "head" in code.co_cellvars:
        return True
    loads = (one.argval for one in dis.get_instructions(code) if "LOAD_FAST" in one.opname)
    return any("head" in (names if isinstance(names, tuple) else (names,)) for names in loads)


def check_rule(pattern: Pattern) -> None:
    """Raise unless a pattern's rule takes positions and gives what is seen.

    Args:
        pattern: one with a rule of its own; nothing that is made of patterns.

    Raises:
        TypeError: it has no rule, the rule fails, or it gives no bool tensor.
        ValueError: what it gives is of another shape.

    >>> from hf_longctx.patterns import parse
    >>> check_rule(parse("window:4"))
    """
    try:
        hash(pattern)
    except TypeError:  # it holds a list, say
        _check(pattern)
    else:
        _checked(pattern)


@lru_cache(maxsize=256)
def _checked(pattern: Pattern) -> None:
    """Remembers that a pattern has passed."""
    _check(pattern)


def _check(pattern: Pattern) -> None:
    tokens, name = torch.arange(_TRIED), type(pattern).__name__
    usage = "it takes integer tensors q and k that broadcast, layer and head, and gives a bool tensor of their shape"
    try:
        seen = pattern.allows(tokens[:, None], tokens[None, :], layer=0, head=0)
    except Exception as error:
        raise TypeError(
            f"{name}.allows fails for q of shape ({_TRIED}, 1) and k of shape (1, {_TRIED}) "
            f"({type(error).__name__}: {error}): {usage}, such as `return q - k < 4`"
        ) from error
    if not isinstance(seen, torch.Tensor) or seen.dtype != torch.bool:
        given = seen.dtype if isinstance(seen, torch.Tensor) else type(seen).__name__
        raise TypeError(f"{name}.allows gives {given}: {usage}, such as `return q - k < 4`")
    try:
        fits = torch.broadcast_shapes(seen.shape, (_TRIED, _TRIED)) == (_TRIED, _TRIED)
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name}.allows gives shape {tuple(seen.shape)} for q of shape ({_TRIED}, 1) and k of shape "
            f"(1, {_TRIED}): {usage}"
        )
