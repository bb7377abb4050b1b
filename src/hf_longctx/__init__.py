"""Change how far a Hugging Face causal language model sees, in one reversible call, and measure what is left.

>>> import hf_longctx as lc
>>> callable(lc.patch), callable(lc.unpatch), callable(lc.describe)
(True, True, True)
"""

from importlib.metadata import version as _version

from hf_longctx.hf.attention import register as _register
from hf_longctx.hf.describe import describe
from hf_longctx.hf.lengths import held_length
from hf_longctx.hf.loading import load_model
from hf_longctx.hf.patching import is_patched, patch, patched, unpatch
from hf_longctx.hf.saving import from_pretrained

__version__ = _version("hf_longctx")
__all__ = [
    "__version__",
    "describe",
    "from_pretrained",
    "held_length",
    "is_patched",
    "load_model",
    "patch",
    "patched",
    "unpatch",
]

_register()
