"""What `torch.compile` steps around."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])


def eager(function: _Function) -> _Function:
    """A function that runs outside the compiled graph: all else is compiled, and `fullgraph=True` hears why not.

    Traced, it would be compiled anew for one shape and pattern after the other. A backward needs this too: a compiled
    training step calls it after the forward is over.

    >>> @eager
    ... def double(x):
    ...     return 2 * x
    >>> torch.compile(lambda x: double(x) + 1, backend="eager")(torch.ones(2))
    tensor([3., 3.])
    """
    reason = (
        "hf_longctx chooses kernels and drops cached keys by the values of positions, so its attention and scan run "
        "outside the compiled graph: use torch.compile without fullgraph=True"
    )
    return torch.compiler.disable(function, reason=reason)
