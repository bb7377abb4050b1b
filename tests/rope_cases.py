"""Shared by the RoPE tests: one scaling of every method, and what transformers computes from a config."""

import torch
from transformers import LlamaConfig, Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from hf_longctx.rope import Scaling
from hf_longctx.rope.base import registry

PACKAGE_METHODS = {name: cls for name, cls in registry().items() if cls.__module__.startswith("hf_longctx.")}


def close(values, expected, rtol=1e-6):
    torch.testing.assert_close(
        torch.as_tensor(values, dtype=torch.float64), torch.as_tensor(expected).double(), rtol=rtol, atol=0
    )


def example(name: str, dim: int = 64, factor: float = 4.0) -> Scaling:
    """One scaling of each registered method, so that a new method is tested as soon as it exists."""
    cls = registry()[name]
    options = {}
    for spec in cls.options():
        if spec.metadata.get("kind") == "positives":
            options[spec.name] = [1 + 0.03 * i * (1 + (spec.name == "long_factor")) for i in range(dim // 2)]
    return cls(factor, **options) if "factor" in cls.extents() else cls(**options)


def plain(dim, base, i):
    return base ** (-2 * i / dim)


def llama(parameters: dict, max_positions: int, dim: int = 64) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=2 * dim,
        num_attention_heads=2,
        max_position_embeddings=max_positions,
        rope_parameters=parameters,
    )


def in_transformers(config, length: int | None = None):
    if config.rope_parameters["rope_type"] == "default":
        module = Phi3RotaryEmbedding if isinstance(config, Phi3Config) else LlamaRotaryEmbedding
        return module.compute_default_rope_parameters(config)
    return ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]](config, seq_len=length)
