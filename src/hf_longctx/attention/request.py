"""What a backend is asked to compute, so that it can say beforehand whether it can."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_longctx.patterns import Pattern, parse
from hf_longctx.patterns.combine import leaves
from hf_longctx.patterns.rule import check_rule


@dataclass(frozen=True)
class Request:
    """One call, without its tensors.

    Attributes:
        pattern: who may see whom; never `Heads`, whose entries are calls of their own.
        device: where the tensors are.
        dtype: their dtype.
        head_dim: head size of queries and keys, None where not known yet.
        value_dim: head size of values, None where not known yet.
        needs_grad: whether gradients are wanted.
        sinks: whether there are learned sinks.
    """

    pattern: Pattern
    device: torch.device
    dtype: torch.dtype
    head_dim: int | None = None
    value_dim: int | None = None
    needs_grad: bool = False
    sinks: bool = False

    @property
    def sizes(self) -> tuple[int, int] | None:
        """Both head sizes, where they are known."""
        return None if self.head_dim is None or self.value_dim is None else (self.head_dim, self.value_dim)


#: Why FlexAttention and the flash kernels refuse a request with `sinks`.
NO_SINKS = "it takes no learned sinks; use 'tiled' or 'dense'"


def tracked(*tensors: Tensor | None) -> bool:
    """Whether gradients are wanted of any of these."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def one_pattern(pattern: Pattern | str) -> Pattern:
    """The pattern of one layer, from an object or its text form.

    Raises:
        TypeError: it is no pattern, one that differs by layer, or one whose rule fails.
        ValueError: its rule gives what is of another shape.
    """
    one = parse(pattern) if isinstance(pattern, str) else pattern
    if not isinstance(one, Pattern):
        if isinstance(pattern, str):
            raise TypeError(f"pattern is {pattern!r}, which differs by layer: give the pattern of one layer")
        raise TypeError(f"pattern is {pattern!r}: it must be a pattern such as SlidingWindow(1024), or its text form")
    for leaf in leaves(one):
        check_rule(leaf)
    return one


def spelled(dtypes: tuple[torch.dtype, ...]) -> str:
    """Dtypes as a list of names.

    >>> spelled((torch.float16, torch.bfloat16))
    'float16, bfloat16'
    """
    return ", ".join(str(d).removeprefix("torch.") for d in dtypes)
