"""The sizes of a model that decide its costs, read from its configuration alone: no weights, no memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_longctx.mamba.mamba2 import parse
from hf_longctx.mamba.mixer import Form
from hf_longctx.plan import ModelShape


@dataclass(frozen=True)
class StateSize:
    """What a recurrent layer holds for one sequence, whatever its length.

    Attributes:
        conv: numbers in the convolution's window.
        state: numbers in the state.
        inner: channels that the layer works on.
        flops: floating-point operations a token of the convolution and the recurrence.
        parameters: of a converted layer, those beyond the attention layer that it was.
        matrices: as many of them as each token is multiplied with.
    """

    conv: int
    state: int
    inner: int
    flops: int
    parameters: int = 0
    matrices: int = 0

    @classmethod
    def of(cls, form: Form) -> StateSize:
        """That of an attention layer converted to Mamba-2."""
        return cls(form.conv_numbers, form.state_numbers, form.inner, form.flops, form.added, form.matrices)


@dataclass(frozen=True)
class Architecture:
    """The sizes of a causal language model.

    Attributes:
        name: the model's class.
        hidden: width of the residual stream.
        intermediate: inner width of an MLP, all experts that one token passes together.
        vocabulary: rows of the output matrix.
        heads: query heads of a layer.
        head_dim: numbers in a head.
        shape: layer types, own windows and key-value heads.
        states: what each layer without attention holds; None where a layer has attention.
        parameters: all of them, before any conversion of layers.
        active: those that each token is multiplied with, the output matrix left out.
        kv_token_bytes: bytes of keys and values that a token adds in one attention layer, at one byte a number.
        max_positions: the window that the config claims.
    """

    name: str
    hidden: int
    intermediate: int
    vocabulary: int
    heads: int
    head_dim: int
    shape: ModelShape
    states: tuple[StateSize | None, ...]
    parameters: int
    active: int
    kv_token_bytes: int
    max_positions: int | None

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.shape.kinds)


def architecture(config: Any) -> Architecture:
    """The sizes of the model that a configuration describes, counted on the model built without memory.

    Args:
        config: a transformers configuration of a causal language model; of a model for several kinds of input, its
            text part.

    Raises:
        ValueError: a configuration of no causal language model.

    >>> from transformers import LlamaConfig
    >>> a = architecture(LlamaConfig(intermediate_size=11008))  # the defaults are Llama 2 7B
    >>> a.layers, a.heads, a.head_dim, a.parameters
    (32, 32, 128, 6738415616)
    """
    from hf_longctx.hf.layer_sizes import head_size, kv_heads, layer_config, stored_numbers
    from hf_longctx.hf.layers import attention_modules, plan_layers
    from hf_longctx.hf.loading import skeleton
    from hf_longctx.hf.mixers import form_of, mamba_layers

    config = config.get_text_config(decoder=True)
    model = skeleton(config)
    modules = attention_modules(model)
    plans = plan_layers(model, None, "intersect")
    module = next(iter(modules.values()), None)
    one = layer_config(config, int(getattr(module, "layer_idx", 0)))
    converted = {i: form_of(modules[i], parse(config.longctx["mamba"])) for i in mamba_layers(config)}
    mixers = {int(m.layer_idx): m for m in model.modules() if hasattr(m, "layer_idx") and hasattr(m, "ssm_state_size")}
    states = tuple(
        StateSize.of(converted[i])
        if i in converted
        else _state(mixers[i])
        if i in mixers and i not in modules
        else None
        for i in range(len(plans))
    )
    embedding = {id(p) for p in model.get_input_embeddings().parameters()}
    head = model.get_output_embeddings()
    if head is not None:
        embedding |= {id(p) for p in head.parameters()}
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None) or 1
    chosen = getattr(config, "num_experts_per_tok", None) or 1
    active = 0
    for name, parameter in model.named_parameters():
        if id(parameter) not in embedding and parameter.ndim > 1:
            active += parameter.numel() * chosen // experts if ".experts." in name else parameter.numel()
    return Architecture(
        name=type(model).__name__,
        hidden=int(config.hidden_size),
        intermediate=int(getattr(config, "intermediate_size", None) or 4 * config.hidden_size) * chosen,
        vocabulary=int(config.vocab_size),
        heads=int(config.num_attention_heads),
        head_dim=head_size(one, module),
        shape=ModelShape(tuple(p.kind for p in plans), tuple(p.own for p in plans), kv_heads(one, module)),
        states=states,
        parameters=sum(p.numel() for p in model.parameters()),
        active=active,
        kv_token_bytes=stored_numbers(one, module),
        max_positions=getattr(config, "max_position_embeddings", None),
    )


def _state(mixer: Any) -> StateSize:
    """A Mamba-1 mixer: `inner` channels with a state of `ssm_state_size` each, a depthwise convolution before.

    Operations a token: the convolution 2 x taps x inner; per number of the state two products and a sum for
    h = a h + b x, one for b x's own product, and a product and a sum for y = c h (Mamba, arXiv 2312.00752, eq. 2).
    """
    inner, size, taps = int(mixer.intermediate_size), int(mixer.ssm_state_size), int(mixer.conv_kernel_size)
    return StateSize(conv=inner * taps, state=inner * size, inner=inner, flops=2 * taps * inner + 6 * inner * size)
