"""How much memory an operator takes, counted from its tensors."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Peak(TorchDispatchMode):
    """The most bytes of live storages made inside, those of `given` left out, and the largest single one."""

    def __init__(self, *given: torch.Tensor) -> None:
        super().__init__()
        self.given = {x.untyped_storage()._cdata for x in given}
        self.live: dict[int, tuple[object, int]] = {}
        self.peak = self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata not in self.given:
                storage = x.untyped_storage()
                self.live[storage._cdata] = (weakref.ref(storage), storage.nbytes())
                self.largest = max(self.largest, storage.nbytes())
        self.live = {c: (ref, size) for c, (ref, size) in self.live.items() if ref() is not None}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return result
