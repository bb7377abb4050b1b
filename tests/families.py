"""Tiny random models of every supported family, built from configs, and the dense masks they are compared under."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from hf_longctx.hf.layers import attention_modules, plan_layers
from hf_longctx.patterns import Layers, Pattern

VOCAB = 61
WINDOW = 12  # of the families that have one of their own
TRAINED = 64

SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": TRAINED,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
GROUPED = SMALL | {"num_key_value_heads": 2}
#: Whose heads have learned sinks, which not every backend takes.
SINKS = ("gpt_oss",)


def _qwen(config: type, **extra) -> object:
    return config(**GROUPED, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1, **extra)


FAMILIES: dict[str, tuple[Callable[[], object], type]] = {
    "llama": (lambda: LlamaConfig(**GROUPED, attention_bias=True), LlamaForCausalLM),
    "mistral": (lambda: MistralConfig(**GROUPED, sliding_window=WINDOW), MistralForCausalLM),
    "qwen2": (lambda: _qwen(Qwen2Config), Qwen2ForCausalLM),
    "qwen3": (lambda: _qwen(Qwen3Config, head_dim=8), Qwen3ForCausalLM),
    "gemma3": (
        lambda: Gemma3TextConfig(
            **GROUPED,
            head_dim=8,
            sliding_window=WINDOW,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            query_pre_attn_scalar=8,
        ),
        Gemma3ForCausalLM,
    ),
    "phi3": (lambda: Phi3Config(**GROUPED), Phi3ForCausalLM),
    "gpt_neox": (lambda: GPTNeoXConfig(**SMALL, rotary_pct=0.5, use_parallel_residual=False), GPTNeoXForCausalLM),
    # Every token passes both experts: a choice between them would jump with the last bit.
    "gpt_oss": (
        lambda: GptOssConfig(
            **GROUPED,
            head_dim=8,
            sliding_window=WINDOW,
            num_local_experts=2,
            num_experts_per_tok=2,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        GptOssForCausalLM,
    ),
}


def build(name: str, *, attention: str | None = None, seed: int = 0, **overrides):
    """A tiny model in evaluation mode; equal arguments give equal weights, on which every parameter matters."""
    make, cls = FAMILIES[name]
    config = make()
    for key, value in overrides.items():
        setattr(config, key, value)
    torch.manual_seed(seed)
    model = cls._from_config(config, attn_implementation=attention) if attention else cls(config)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if name.endswith("bias") or "norm" in name:  # all alike in a new model: losing one would not show
                weights += 0.1 * torch.randn_like(weights)
    return model.eval()


def tokens(batch: int, length: int, seed: int = 1) -> torch.Tensor:
    """Random token ids (batch, length), none of them special."""
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def padding(side: str, batch: int, length: int) -> torch.Tensor:
    """A 2-D attention mask (batch, length): row i has 5 i padding tokens on a side, holes inside, or both."""
    mask = torch.ones(batch, length, dtype=torch.long)
    for row in range(1, batch):
        start = 5 * row if side in ("left", "left and inner") else 0
        mask[row, :start] = 0
        if side == "right":
            mask[row, length - 5 * row :] = 0
        elif side in ("inner", "left and inner"):
            mask[row, start + 3 * row : start + 3 * row + 2] = 0
            mask[row, length // 2] = 0
    return mask


@contextmanager
def dense(model, pattern: Pattern | Layers | None, valid: torch.Tensor, own_windows: str = "intersect") -> Iterator:
    """Give each attention layer of a stock eager model the pattern as a dense 4-D mask (B, Hq, L, L)."""
    plans = plan_layers(model, pattern, own_windows)
    handles = []
    for index, module in attention_modules(model).items():
        mask = dense_mask(plans[index].pattern, valid, index, model.config)

        def give(_module, args, kwargs, mask=mask):
            return args, {**kwargs, "attention_mask": mask}

        handles.append(module.register_forward_pre_hook(give, with_kwargs=True))
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def dense_mask(pattern: Pattern, valid: torch.Tensor, layer: int, config) -> torch.Tensor:
    """0 where a key is seen and the lowest float where not, by the definition of the pattern alone."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    position = valid.long().cumsum(-1) - 1
    q, k = position[:, :, None], position[:, None, :]
    masks = []
    for head in range(kv_heads):
        seen = pattern.allows(q, k, layer=layer, head=head) & (k <= q) & valid.bool()[:, None, :]
        masks.append(seen.expand(valid.shape[0], valid.shape[1], valid.shape[1]))
    seen = torch.stack(masks, 1).repeat_interleave(heads // kv_heads, 1)
    return torch.where(seen, 0.0, torch.finfo(torch.float32).min)
