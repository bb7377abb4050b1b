"""What was worked out lately, kept by key and bounded in number."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any, Generic, TypeVar

from torch import Tensor, is_inference_mode_enabled
from torch.utils.weak import TensorWeakRef

_Value = TypeVar("_Value")


class Recent(Generic[_Value]):
    """The `size` values used last.

    >>> squares = Recent[int](2)
    >>> [squares.get(n, lambda n=n: n * n) for n in (1, 2, 3)], len(squares)
    ([1, 4, 9], 2)
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._kept: OrderedDict[Hashable, _Value] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, make: Callable[[], _Value]) -> _Value:
        """The value of `key`, made if it is not there.

        What was made in inference mode is for inference mode alone: autograd refuses its tensors.
        """
        key = (key, is_inference_mode_enabled())
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        value = make()
        with self._lock:
            self._kept[key] = value
            while len(self._kept) > self.size:
                self._kept.popitem(last=False)
        return value

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()


class Remembers:
    """Something that what follows from it is kept with, in `_known`, for as long as it lives."""

    _known: dict[Hashable, Any]

    def remember(self, key: Hashable, make: Callable[[], _Value]) -> _Value:
        """What was made for `key` before, or is made now."""
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]


class Same:
    """A tensor as a key: equal to another view of the same memory that has not been written to in between.

    It does not keep the tensor alive, and once that is gone it equals nothing, not even a tensor in its place.
    """

    def __init__(self, x: Tensor) -> None:
        base = base_of(x)
        self._ref = TensorWeakRef(base)
        self._key = (id(base), x._version, x.shape, x.stride(), x.storage_offset())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self._key == other._key and self._ref() is other._ref() is not None

    def __hash__(self) -> int:
        return hash(self._key)


def base_of(x: Tensor) -> Tensor:
    """The tensor that `x` is a view of, or itself."""
    return x if x._base is None else x._base


def same(*tensors: Tensor | None) -> tuple[Same | None, ...] | None:
    """Tensors as a key, or None where writing to one would go unnoticed (inference mode).

    >>> import torch
    >>> x = torch.arange(4)[None]
    >>> a, b = same(x[0]), same(x[0])
    >>> a == b, a == same(x[0] + 0), x.add_(1).sum().item(), a == same(x[0])
    (True, False, 10, False)
    """
    if any(x is not None and x.is_inference() for x in tensors):
        return None
    return tuple(None if x is None else Same(x) for x in tensors)
