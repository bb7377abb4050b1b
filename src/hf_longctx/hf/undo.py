"""Undo steps as data: what a patch replaced, and how to put it back.

They hold references, never closures, so that a deep copy of a patched model carries steps that undo the copy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

#: The attribute in which a patched model keeps its undo steps.
STEPS = "_longctx_steps"


class Missing:
    """Stands for an attribute that was not there."""


class Undo(Protocol):
    """A step that can be taken back."""

    def undo(self) -> None:
        """Put back what was replaced."""


@dataclass
class Attributes:
    """Attributes of an object, replaced on creation by `new`."""

    owner: Any
    new: dict[str, Any]
    old: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.old = {name: vars(self.owner).get(name, Missing) for name in self.new}
        for name, value in self.new.items():
            setattr(self.owner, name, value)

    def undo(self) -> None:
        """Set or delete each attribute as it was."""
        for name, value in self.old.items():
            if value is Missing:
                delattr(self.owner, name)
            else:
                setattr(self.owner, name, value)


@dataclass
class Buffers:
    """Buffers of a module, replaced on creation by `new`, on the device where they live."""

    module: nn.Module
    new: dict[str, Any]
    old: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.new.items():
            self.old[name] = self.module._buffers[name]
            self.module._buffers[name] = value.to(self.old[name].device)

    def undo(self) -> None:
        """Put the old tensors back, moved and cast as the model was meanwhile."""
        for name, value in self.old.items():
            now = self.module._buffers[name]
            self.module._buffers[name] = value if now is None else value.to(now)


@dataclass
class Implementation:
    """The attention implementation of a model."""

    model: Any
    old: str

    def undo(self) -> None:
        """Switch back."""
        self.model.set_attn_implementation(self.old)


@dataclass
class Swap:
    """A submodule, replaced on creation by `new`."""

    parent: nn.Module
    name: str
    new: nn.Module
    old: Any = None

    def __post_init__(self) -> None:
        self.old = self.parent._modules[self.name]
        self.parent._modules[self.name] = self.new
        self._beside = self._dtype_beside()

    def undo(self) -> None:
        """Put the old module back, moved and cast as what stands beside it was meanwhile."""
        now = next(self.parent._modules[self.name].parameters())  # type: ignore[union-attr]
        old = self.old if now.is_meta else self.old.to(now.device)  # offloaded: its weights are nowhere else
        if (dtype := self._dtype_beside()) != self._beside:
            old = old.to(dtype)
        self.parent._modules[self.name] = old.train(self.parent.training)

    def _dtype_beside(self) -> torch.dtype | None:
        """The dtype of the parent's other weights: the new module may be held in one of its own, to be trained."""
        others = (m for name, m in self.parent.named_children() if name != self.name)
        return next((p.dtype for m in others for p in m.parameters() if p.is_floating_point()), None)


@dataclass
class Hook:
    """A forward pre-hook."""

    handle: RemovableHandle

    def undo(self) -> None:
        """Remove it."""
        self.handle.remove()
