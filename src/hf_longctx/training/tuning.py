"""Which parameters are trained: all of them, LoRA on the attention, or LoRA with embeddings and norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hf_longctx.hf.layers import attention_modules

from .recipes import TUNES


def check_tune(how: str) -> None:
    """Raise unless `how` is a way of tuning whose package is here.

    Raises:
        ValueError: no such way.
        ModuleNotFoundError: LoRA without PEFT.
    """
    if how not in TUNES:
        raise ValueError(f"tune is {how!r}: it must be one of {', '.join(TUNES)}")
    if how != "full":
        import importlib.util

        if importlib.util.find_spec("peft") is None:
            raise ModuleNotFoundError(
                f'tune={how!r} needs the package peft: pip install "hf_longctx[train]", or choose tune="full"'
            )


def make_trainable(model: Any, how: str, *, rank: int, alpha: float, seed: int) -> Any:
    """Choose what is trained.

    Args:
        model: a transformers causal language model, patched already.
        how: `full`, `lora` (the projections of attention), or `lora-plus` (embeddings and norms besides, without which
            LoRA hardly learns a longer window: Chen et al. 2023, arXiv 2309.12307, section 3.3).
        rank: of LoRA.
        alpha: of LoRA; updates are scaled by alpha over rank.
        seed: of LoRA's first weights.

    Returns:
        The model itself, or a PEFT model around it.
    """
    if how == "full":
        model.requires_grad_(True)
        return model
    from peft import LoraConfig, get_peft_model

    extra = whole_modules(model) if how == "lora-plus" else []
    tied = bool(extra) and bool(getattr(model.config, "tie_word_embeddings", False))
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=projections(model),
        modules_to_save=extra or None,
        ensure_weight_tying=tied,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def projections(model: Any) -> list[str]:
    """The linear layers of attention, each by its module's name and its own.

    Raises:
        ValueError: none found.
    """
    names = dict.fromkeys(
        f"{path.rpartition('.')[2]}.{child}"
        for path, module in _attention(model)
        for child, layer in module.named_children()
        if isinstance(layer, nn.Linear)
    )
    if not names:
        raise ValueError(
            f"{type(model).__name__} has no linear layers in its attention for LoRA to adapt: choose tune='full'"
        )
    return list(names)


def whole_modules(model: Any) -> list[str]:
    """The modules that LoRA-plus trains as a whole: the embeddings and every norm, by their own names."""
    embedding = model.get_input_embeddings()
    return list(
        dict.fromkeys(
            path.rpartition(".")[2]
            for path, module in model.named_modules()
            if module is embedding or type(module).__name__.endswith("Norm")
        )
    )


def _attention(model: Any) -> list[tuple[str, Any]]:
    wanted = {id(module) for module in attention_modules(model).values()}
    return [(path, module) for path, module in model.named_modules() if id(module) in wanted]


def to_float32(model: Any) -> None:
    """Hold what is trained in float32, since small updates vanish in bfloat16; the rest stays as it is."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
