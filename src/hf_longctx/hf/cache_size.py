"""How many bytes a cache takes: one place for `describe`, the memory check before a run, and the cost model."""

from __future__ import annotations

from typing import Any

from hf_longctx.hf.layer_sizes import stored_numbers
from hf_longctx.mamba.mixer import Form
from hf_longctx.plan import LayerPlan

#: Bytes of a number of a state, which is float32 (in a float64 model, float64).
STATE_ITEMSIZE = 4


def token_bytes(config: Any, itemsize: int, module: Any = None) -> int:
    """Bytes that one token adds to the cache of one layer: mostly 2 x key-value heads x head size numbers.

    Args:
        config: a model's configuration.
        itemsize: bytes of a number, 2 for bfloat16.
        module: the layer's attention module, which knows its sizes best; None reads the config alone.

    >>> from transformers import LlamaConfig
    >>> shape = dict(hidden_size=4096, num_attention_heads=32, num_key_value_heads=8, num_hidden_layers=32)
    >>> 32 * token_bytes(LlamaConfig(**shape), 2) == 128 * 1024  # Llama 3 8B: 128 KiB a token
    True
    """
    return stored_numbers(config, module) * itemsize


def state_bytes(form: Form, itemsize: int) -> int:
    """Bytes that a Mamba-2 layer holds for one sequence, whatever its length: a float32 state, and a convolution's.

    Args:
        form: the layer's sizes.
        itemsize: bytes of a number of the model, in which the convolution's last inputs are kept.

    >>> state_bytes(Form(4096, heads=32, kv_heads=8, head_dim=128), 2)  # Llama 3 8B: 512 KiB and 36 KiB
    561152
    """
    return max(STATE_ITEMSIZE, itemsize) * form.state_numbers + itemsize * form.conv_numbers


def crossover(state: int, per_token: int) -> int:
    """The first length at which keys and values take more bytes than a state.

    Args:
        state: what `state_bytes` says.
        per_token: what `token_bytes` says of the attention layer in the same place.

    >>> crossover(561152, 4096)
    138
    """
    return state // per_token + 1


def most_keys(plan: LayerPlan, *, evicting: bool) -> int | None:
    """The most keys that a layer's cache holds between two forwards; None where it drops none.

    Args:
        plan: what the layer attends to.
        evicting: whether the cache is this package's, which follows the pattern with some slack. transformers' own
            keeps a layer's window less the query itself, which comes with the next forward.
    """
    from hf_longctx.hf.eviction import most_columns

    if evicting:
        return most_columns(plan.pattern)
    return None if plan.own is None else plan.own - 1


def layer_bytes(tokens: int, per_token: int, most: int | None, *, evicting: bool) -> int:
    """Bytes that the cache of one layer and one sequence takes after `tokens` tokens.

    Args:
        tokens: tokens seen, prompt and generated ones.
        per_token: what `token_bytes` says.
        most: what `most_keys` says.
        evicting: as there. Such a cache stores a slot number beside each key, and has columns to spare.

    >>> layer_bytes(1_000_000, 4096, None, evicting=True), layer_bytes(1_000_000, 4096, 1280, evicting=True)
    (4096000000, 5253120)
    """
    from hf_longctx.hf.eviction import SLOT_BYTES, columns

    if most is None or not per_token:  # a layer that reads the keys of another stores none
        return per_token * tokens
    if not evicting:
        return per_token * min(tokens, most)
    return (per_token + SLOT_BYTES) * columns(tokens, most)
