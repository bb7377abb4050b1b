"""Who may see whom: attention patterns, one a file.

A new pattern is one new file in this folder that subclasses `Pattern` and defines `allows`. It registers itself; the
command line, the gallery and the contract tests find it by looping over the registry.
"""

from __future__ import annotations

import importlib
import pkgutil

from hf_longctx.patterns.base import REGISTRY, Pattern, reach_through
from hf_longctx.patterns.block import Block
from hf_longctx.patterns.combine import Heads, Union, Windowed
from hf_longctx.patterns.dilated import Dilated
from hf_longctx.patterns.fixed import Fixed
from hf_longctx.patterns.full import Full
from hf_longctx.patterns.global_tokens import Global
from hf_longctx.patterns.layers import Layers, select
from hf_longctx.patterns.random_blocks import Random
from hf_longctx.patterns.segment import Segment
from hf_longctx.patterns.sliding_window import SlidingWindow
from hf_longctx.patterns.strided import Strided
from hf_longctx.patterns.text import gallery, names, parse, presets

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def __getattr__(name: str) -> type[Pattern]:
    """A pattern class from a file that this module does not import by name."""
    for cls in REGISTRY.values():
        if cls.__name__ == name:
            return cls
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Block",
    "Dilated",
    "Fixed",
    "Full",
    "Global",
    "Heads",
    "Layers",
    "Pattern",
    "Random",
    "Segment",
    "SlidingWindow",
    "Strided",
    "Union",
    "Windowed",
    "gallery",
    "names",
    "parse",
    "presets",
    "reach_through",
    "select",
]
