"""RoPE scaling as pure formulas: a config's numbers in, frequencies and `rope_parameters` out. No model is touched.

>>> from hf_longctx.rope import parse
>>> parse("yarn:4").inv_freq(dim=128, base=10000.0, trained=4096).shape
torch.Size([64])
"""

from hf_longctx.rope.base import Scaling, default_inv_freq, names
from hf_longctx.rope.by_parts import Llama3, NTKByParts
from hf_longctx.rope.longrope import LongRoPE
from hf_longctx.rope.native import from_parameters
from hf_longctx.rope.ntk import NTK, DynamicNTK
from hf_longctx.rope.plain import Linear, NoScaling
from hf_longctx.rope.text import parse
from hf_longctx.rope.wavelengths import Wavelength, unseen, wavelengths
from hf_longctx.rope.yarn import YaRN

__all__ = [
    "NTK",
    "DynamicNTK",
    "Linear",
    "Llama3",
    "LongRoPE",
    "NTKByParts",
    "NoScaling",
    "Scaling",
    "Wavelength",
    "YaRN",
    "default_inv_freq",
    "from_parameters",
    "names",
    "parse",
    "unseen",
    "wavelengths",
]
