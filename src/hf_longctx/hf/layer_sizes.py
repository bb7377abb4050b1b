"""The sizes of one attention layer, which in some families are not those of every layer."""

from __future__ import annotations

from typing import Any


def layer_config(config: Any, index: int) -> Any:
    """The config as one layer has it: Gemma 4 gives layers head sizes of their own, and refuses to say one for all."""
    return config.per_layer_config[index] if getattr(config, "is_heterogeneous", False) else config


def kv_heads(config: Any, module: Any = None) -> int:
    """Key-value heads of a layer.

    Args:
        config: the decoder's.
        module: the layer's attention module, which knows best; None reads the config alone.

    Raises:
        ValueError: a model without attention layers.
    """
    groups = getattr(module, "num_key_value_groups", None)
    if groups and getattr(config, "num_attention_heads", None):
        return int(config.num_attention_heads) // int(groups)
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", None)
    if not heads:
        raise ValueError(
            f"{type(config).__name__} has no num_attention_heads: hf_longctx is for models with attention layers"
        )
    return int(heads)


def head_size(config: Any, module: Any = None) -> int:
    """Numbers in a head of a layer; arguments as for `kv_heads`."""
    size = next((s for name in ("head_dim", "head_size", "v_head_dim") if (s := getattr(module, name, None))), None)
    return int(size or getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def stored_numbers(config: Any, module: Any = None) -> int:
    """How many numbers one token adds to the cache of a layer: its keys and values, or what stands for them.

    DeepSeek's layers store one vector for all heads (arXiv 2405.04434, section 2.1), and some of Gemma 3n's and 4's
    read the keys of another layer.

    Args:
        config: the decoder's.
        module: the layer's attention module; None reads the config alone.
    """
    if getattr(module, "is_kv_shared_layer", False):
        return 0
    if getattr(module, "kv_lora_rank", None):
        return int(module.kv_lora_rank) + int(module.qk_rope_head_dim)
    size = head_size(config, module)
    return kv_heads(config, module) * (size + int(getattr(module, "v_head_dim", None) or size))
