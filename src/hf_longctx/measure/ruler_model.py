"""A model whose memory is known, to measure the measuring: its weights are written by hand, not trained.

It answers "... KEY is" with the token that followed "KEY is" earlier in the text, as an induction head does (Olsson et
al. 2022, arXiv 2209.11895):

- layer 0, *previous tokens*: at each position two heads look one and two tokens back, by rotary position alone, and
  write down what stands there;
- layers 1 to r, *relays* (none by default): each position copies the fact it sees: a number with the two tokens
  before it, there or passed on by an earlier relay. They take one fact in the text; several would blur;
- the last layer, *retrieval*: the last position looks for the fact whose two preceding tokens match, and copies the
  token it states.

So if the last layer sees through a window of W tokens, the model recalls what is at most W - 1 tokens back, and with r
relays of the same window about r + 1 times as far. Where positions are broken the first layer reads the wrong
neighbours, and nothing is recalled.

With `linear` the last layer is written to be read without a softmax, as Mamba-2 reads it after `patch(model,
mamba="-1,memory=M")`. What a state recalls is a sum over all that it has seen, so nothing but the match may count:
words have orthogonal codes, the key is the word two tokens before, and numbers alone are values. What is left of a
fact d tokens back is then (1 - a) a^d with a = exp(-1 / M) (`hf_longctx.mamba.convert`), and the model falls silent
where that is less than `FAINT`: a memory that follows from the decay, `forgotten_after`.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from .word_tokenizer import WordTokenizer

_CODE = 64
"""Dimensions of a token's code: random signs, which hardly overlap."""
_HEAD = 256
_HALF = _HEAD // 2
"""Dimensions i and i + `_HALF` of a head turn together."""
_THETA = 1e20
"""So that a pair of dimensions either turns fast or does not turn at all."""
_TURNING = 14
"""Pairs that tell positions apart."""
_STILL = 56
"""From this pair on none turns within a million tokens, so that content is compared whatever the distance."""
_ONE = 64.0
"""A constant that outweighs all else, so that RMSNorm multiplies every position by nearly the same number."""
_SHARP = 60.0
"""Logits by which two positions one apart differ, about."""
_MATCH = 60.0
"""Logits of a matching token, or of a fact."""
FAINT = 2.0**-30
"""With `linear`, the share of a fact below which the end token is likelier: less than the longest `memory` gives."""

# Where in the residual stream things are kept: single dimensions, then the first of `_CODE` dimensions each.
_CONSTANT, _NUMBER, _RELAYED = 0, 1, 2
_TOKEN, _BEFORE, _BEFORE_THAT, _NUMERAL, _SAID = 64, 128, 192, 256, 320
_FACT, _FACT_BEFORE, _FACT_BEFORE_THAT = 384, 448, 512
_WIDTH = 576


def ruler_model(
    tokenizer: WordTokenizer, *, relays: int = 0, linear: bool = False, claimed: int = 1 << 20, seed: int = 0
) -> Any:
    """Write the weights of a model that recalls exactly what its last layer sees.

    Args:
        tokenizer: whose numbers it can tell from words.
        relays: layers that pass facts on, at least 0.
        linear: whether the last layer is written to become a Mamba-2 layer. It then recalls the number that stands two
            tokens after a word, among words whose ids differ modulo 64, and has no relays.
        claimed: what its config says of its context, in tokens.
        seed: of the tokens' codes.

    Returns:
        A `LlamaForCausalLM` in float32 and evaluation mode, with `2 + relays` layers of two query heads and one
        key-value head.

    Raises:
        ValueError: for a negative number of relays, or relays with `linear`.

    >>> tokenizer = WordTokenizer(512)
    >>> model = ruler_model(tokenizer)
    >>> ids = tokenizer("The key of Rome is 41. The key of Oslo is 87. The key of Rome is")["input_ids"]
    >>> tokenizer.decode([int(model(torch.tensor([ids])).logits[0, -1].argmax())])
    ' 41'
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    if relays < 0:
        raise ValueError(f"relays={relays}: give at least 0")
    if relays and linear:
        raise ValueError(f"relays={relays} with linear=True: a linear last layer reads facts itself; leave relays out")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=_WIDTH,
        intermediate_size=1,
        num_hidden_layers=2 + relays,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=_HEAD,
        max_position_embeddings=claimed,
        rms_norm_eps=1e-12,
        rope_parameters={"rope_type": "default", "rope_theta": _THETA},
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    # Nothing is drawn: every parameter is written below, or stays 0.
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
        _write_codes(model, tokenizer, seed, orthogonal=linear)
        layers = model.model.layers
        _write_previous(layers[0].self_attn)
        for layer in layers[1:-1]:
            _write_relay(layer.self_attn)
        if linear:
            _write_linear_retrieval(layers[-1].self_attn)
            silence = model.get_output_embeddings().weight[tokenizer.eos_token_id].zero_()
            silence[_CONSTANT] = _MATCH * FAINT / _ONE
        else:
            _write_retrieval(layers[-1].self_attn, relayed=relays > 0)
        # RMSNorm multiplies by about sqrt(width) / _ONE, and attention divides by the root of the head's size.
        for layer in layers:
            layer.input_layernorm.weight.fill_(_ONE / math.sqrt(_WIDTH))
            layer.self_attn.q_proj.weight.mul_(math.sqrt(_HEAD))
    return model


def forgotten_after(memory: int) -> float:
    """How far back a linear ruler recalls once its last layer is a Mamba-2 layer: where (1 - a) a^d is `FAINT`.

    Args:
        memory: of the `Mamba2` plan, in tokens.

    Returns:
        Tokens from a fact's value to the last token of the prompt; what is farther is forgotten.

    >>> round(forgotten_after(8), 1)
    149.2
    """
    return memory * math.log(-math.expm1(-1 / memory) / FAINT)


def _write_codes(model: Any, tokenizer: WordTokenizer, seed: int, *, orthogonal: bool) -> None:
    """Embeddings hold a token's code, a constant, and the code once more for numbers; the head reads what is said."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (len(tokenizer), _CODE), generator=generator) * 2.0 - 1.0
    codes = signs / math.sqrt(_CODE)
    numbers = torch.tensor([tokenizer.is_number(token) for token in range(len(tokenizer))])
    if orthogonal:
        words = (~numbers).nonzero()[:, 0]
        codes[words] = torch.eye(_CODE)[words % _CODE]
    table = model.get_input_embeddings().weight
    table[:, _CONSTANT] = _ONE
    table[:, _NUMBER] = numbers.float()
    table[:, _TOKEN : _TOKEN + _CODE] = codes
    table[:, _NUMERAL : _NUMERAL + _CODE] = codes * numbers[:, None]
    model.get_output_embeddings().weight[:, _SAID : _SAID + _CODE] = codes


def _write_previous(attention: Any) -> None:
    """Head h looks h + 1 tokens back: its query is the key's constant, turned back by so many positions."""
    pair = torch.arange(_TURNING)
    speed = _THETA ** (-pair.double() / _HALF)
    _key(attention)[pair, _CONSTANT] = 1 / _ONE
    for head, into in enumerate((_BEFORE, _BEFORE_THAT)):
        query = _query(attention, head)
        query[pair, _CONSTANT] = (_SHARP * torch.cos(speed * (head + 1))).float() / _ONE
        query[pair + _HALF, _CONSTANT] = -(_SHARP * torch.sin(speed * (head + 1))).float() / _ONE
        _copy(_out(attention, head), into, 0)
    _copy(_value(attention).T, _TOKEN, 0)


def _write_relay(attention: Any) -> None:
    """Head 0 copies a fact: the same query everywhere, and keys where a number stands or a fact has arrived."""
    _query(attention, 0)[_STILL, _CONSTANT] = _MATCH / _ONE
    _key(attention)[_STILL, _NUMBER] = _key(attention)[_STILL, _RELAYED] = 1.0
    pairs = ((_NUMERAL, _FACT), (_BEFORE, _FACT_BEFORE), (_BEFORE_THAT, _FACT_BEFORE_THAT))
    for block, (here, fact) in enumerate(pairs):
        _copy(_value(attention).T, here, block * _CODE)
        _copy(_value(attention).T, fact, block * _CODE)
        _copy(_out(attention, 0), fact, block * _CODE)
    flag = len(pairs) * _CODE
    _value(attention)[flag, _NUMBER] = _value(attention)[flag, _RELAYED] = 1.0
    _out(attention, 0)[_RELAYED, flag] = 1.0


def _write_retrieval(attention: Any, *, relayed: bool) -> None:
    """Head 0 looks for a token that is preceded as the next one would be, and says it."""
    first, second = (_FACT_BEFORE, _FACT_BEFORE_THAT) if relayed else (_BEFORE, _BEFORE_THAT)
    for asked, kept, place in ((_TOKEN, first, _STILL), (_BEFORE, second, _STILL + _HALF)):
        _copy(_query(attention, 0).T, asked, place, scale=_MATCH)
        _copy(_key(attention).T, kept, place)
    _copy(_value(attention).T, _FACT if relayed else _TOKEN, 0)
    _copy(_out(attention, 0), _SAID, 0)


def _write_linear_retrieval(attention: Any) -> None:
    """Head 0 looks for a number two tokens after the word that stands before the last, and says it."""
    _copy(_query(attention, 0).T, _BEFORE, _STILL, scale=_MATCH)
    _copy(_key(attention).T, _BEFORE_THAT, _STILL)
    _copy(_value(attention).T, _NUMERAL, 0)
    _copy(_out(attention, 0), _SAID, 0)


def _copy(matrix: torch.Tensor, stream: int, head: int, scale: float = 1.0) -> None:
    """Join a block of the residual stream (rows) with a block of a head (columns)."""
    index = torch.arange(_CODE)
    matrix[stream + index, head + index] = scale


def _query(attention: Any, head: int) -> torch.Tensor:
    return attention.q_proj.weight[head * _HEAD : (head + 1) * _HEAD]


def _key(attention: Any) -> torch.Tensor:
    return attention.k_proj.weight


def _value(attention: Any) -> torch.Tensor:
    return attention.v_proj.weight


def _out(attention: Any, head: int) -> torch.Tensor:
    return attention.o_proj.weight[:, head * _HEAD : (head + 1) * _HEAD]
