"""What a length costs, by formula: bytes and floating-point operations of a prefill, from a model's sizes alone.

n is the number of tokens, m the rows of one forward (n, or a chunk), H and G query and key-value heads, D a head's
size, h the hidden size, b the bytes of a number. A multiplication and an addition count as two operations; softmax,
norms and rotations are left out, as in the sources:

* matrices outside attention: 2 operations a parameter and token (Kaplan et al., arXiv 2001.08361, table 1);
* attention: 4 D operations a pair of query and key and head, two for the score and two for the weighted sum
  (FlashAttention, arXiv 2205.14135, section 3). Standard attention computes all n x n pairs and masks half of them
  away; flash and the patterns compute what `Pattern.count` counts;
* scores: standard attention stores n x n of them a head (arXiv 2205.14135, algorithm 0), flash one log-sum-exp a row;
* cache: 2 G D b a token and layer, less what a pattern lets the cache drop (`hf.cache_size`);
* Mamba-2: a state of G x D x D and a convolution's window, whatever the length: what `patch(mamba=...)` makes of an
  attention layer, whose query heads share states as they shared keys and values (arXiv 2405.21060, section 6).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import Any

from hf_longctx.hf.architecture import Architecture, StateSize
from hf_longctx.hf.cache_size import layer_bytes, most_keys
from hf_longctx.mamba.mamba2 import Mamba2
from hf_longctx.mamba.mamba2 import parse as parse_mamba
from hf_longctx.mamba.mixer import Form
from hf_longctx.patterns import Heads, Layers, Pattern, select
from hf_longctx.plan import LayerPlan, kinds_of, resolve

#: Bytes of a log-sum-exp and of a recurrent state's number: float32.
SINGLE = 4
#: Rows up to which a pattern known by its rule alone is counted; beyond, operations are unknown.
COUNTED = 1 << 14
#: No length is looked for past this many tokens.
FARTHEST = 1 << 40


@dataclass(frozen=True)
class Method:
    """A way to mix tokens, in all layers of a model.

    Attributes:
        name: how it is called in tables.
        attention: a pattern or a plan by layer; None leaves the layers as they are.
        materialised: whether each head's m x n scores are stored, as standard attention does.
        patched: whether this package runs it, with caches that drop keys.
        mamba: which layers are Mamba-2 layers instead, in text form, None for none.
        own_windows: what becomes of windows that layers have of their own.
    """

    name: str
    attention: Pattern | Layers | None = None
    materialised: bool = False
    patched: bool = False
    mamba: str | None = None
    own_windows: str = "intersect"


STANDARD = Method("standard", materialised=True)
FLASH = Method("flash")


@dataclass(frozen=True)
class Cost:
    """What one method costs at one length; whole numbers, None where unknown.

    Attributes:
        tokens: length of the prompt.
        matrix_bytes: scores of one head of one layer, as stored at once; for flash and patterns its log-sum-exps, for
            a recurrent layer one head's state.
        matrix_flops: operations of one head of the costliest layer.
        layer_bytes: the same scores for all heads of a layer.
        layer_flops: operations of the costliest layer's attention or recurrence, all heads.
        matrices: how many score matrices there are, heads x layers; 0 where none is stored.
        all_scores_bytes: all of them, which training without recomputation keeps.
        attention_flops: attention and recurrence of all layers.
        flops: the whole prefill, logits of the last token.
        weight_bytes: all parameters.
        cache_bytes: cache and states after the prompt.
        activation_bytes: what the widest layer holds for a while beside the scores.
        score_bytes: what the scores of a layer take at their peak in transformers' eager attention, mask included.
        logits_bytes: float32 logits of the last token.
        all_logits_bytes: float32 logits of every token, as a forward without `logits_to_keep` makes.
        working_bytes: the most that the prefill holds beside the weights.
        peak_bytes: the same and the weights.
    """

    tokens: int
    matrix_bytes: int
    matrix_flops: int | None
    layer_bytes: int
    layer_flops: int | None
    matrices: int
    all_scores_bytes: int
    attention_flops: int | None
    flops: int | None
    weight_bytes: int
    cache_bytes: int
    activation_bytes: int
    score_bytes: int
    logits_bytes: int
    all_logits_bytes: int
    working_bytes: int
    peak_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


#: What is held in memory, so that a length fits or does not.
MEMORY = tuple(f.name for f in fields(Cost) if f.name.endswith("_bytes"))


# ------------------------------------------------------------------ formulas


def matrix_bytes(n: int, itemsize: int) -> int:
    """Bytes of one head's n x n scores.

    A million is 10^6 here: one BF16 matrix of 10^12 scores takes 2 x 10^12 bytes, 2 TB. At 1m tokens, which are
    2^20 as in all lengths of this package, it is 2^41 bytes, 2 TiB.

    >>> matrix_bytes(10**6, 2), matrix_bytes(1 << 20, 2) == 2 * 2**40
    (2000000000000, True)
    """
    return n * n * itemsize


def attention_flops(pairs: int, head_dim: int) -> int:
    """Operations of one head over `pairs` pairs of query and key: 4 x pairs x D (arXiv 2205.14135).

    >>> attention_flops(8192 * 8192, 128) == 4 * 8192**2 * 128
    True
    """
    return 4 * pairs * head_dim


def eager_bytes(itemsize: int, device: str = "cuda") -> int:
    """Bytes a score that transformers' eager attention holds at its peak, read off `eager_attention_forward`.

    In float32 the scores and their masked or normalised copy: 8. In 16 bits softmax runs in float32: the scores, the
    float32 weights and their 16-bit copy, 2 + 4 + 2 = 8 on CUDA; a CPU also makes a float32 copy of the scores
    for softmax, 2 + 4 + 4 = 10.
    """
    return 10 if itemsize == 2 and device == "cpu" else 8


def mamba2_state(a: Architecture, plan: Mamba2) -> StateSize:
    """The Mamba-2 layer that an attention layer becomes: G states of D x D, and a convolution over x, B and C.

    >>> from transformers import LlamaConfig
    >>> from hf_longctx.hf.architecture import architecture
    >>> size = mamba2_state(architecture(LlamaConfig(num_key_value_heads=8, vocab_size=128256)), Mamba2("1::4"))
    >>> size.state * 4 == 512 * 2**10  # 512 KiB a layer in float32, at 8 key-value heads of 128
    True
    """
    return StateSize.of(Form(a.hidden, a.heads, a.shape.kv_heads, a.head_dim, taps=plan.conv))


@lru_cache(maxsize=1024)
def pairs(pattern: Pattern, n: int) -> tuple[int, ...] | None:
    """Visible pairs among n tokens, for each entry of `Heads` or once for all heads.

    Random blocks are counted for layer 0 and head 0; in a union, draws that overlap its other members differ a little
    elsewhere. None for a pattern that is known by its rule alone, past `COUNTED` tokens: it takes n x n steps.
    """
    import torch

    heads = len(pattern.entries) if isinstance(pattern, Heads) else 1
    slow = type(pattern).count is Pattern.count and any(
        pattern.rows(torch.arange(1), head=head) is None for head in range(heads)
    )
    if slow and n > COUNTED:
        return None
    return tuple(pattern.count(n, head=head) for head in range(heads))


# ------------------------------------------------------------------ a model


def cost(
    a: Architecture,
    method: Method,
    tokens: int,
    *,
    itemsize: int = 2,
    chunk: int | None = None,
    device: str = "cuda",
    count: bool = True,
) -> Cost:
    """What a prefill of `tokens` tokens costs.

    Args:
        a: the model's sizes.
        method: how tokens are mixed.
        tokens: length of the prompt, at least 1.
        itemsize: bytes of a number, in weights, activations and cache.
        chunk: rows of one forward; None reads the prompt at once, as `generate` does.
        device: `cuda` or `cpu`, which differ in eager attention's copies.
        count: whether to count operations too.

    Raises:
        ValueError: a length or chunk below 1, or a plan that does not fit the model.

    >>> from transformers import LlamaConfig
    >>> from hf_longctx.hf.architecture import architecture
    >>> a = architecture(LlamaConfig())  # 32 layers of 32 heads
    >>> million = cost(a, STANDARD, 10**6)
    >>> million.matrices, million.matrix_bytes, million.all_scores_bytes == 1024 * 2 * 10**12
    (1024, 2000000000000, True)
    """
    for name, value in (("tokens", tokens), ("chunk", chunk)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}: it must be at least 1")
    n, m, b = tokens, min(chunk or tokens, tokens), itemsize
    layers = _layers(a, method)
    mixing = [_layer(a, method, plan, state, n, m, b, device, count) for plan, state in layers]
    flops = None if any(x.flops is None for x in mixing) else sum(x.flops or 0 for x in mixing)
    widest = max(mixing, key=lambda x: x.scores + x.activations)
    top = max(mixing, key=lambda x: x.flops or 0)
    mlp = m * b * (2 * a.hidden + 3 * a.intermediate)
    logits = SINGLE * a.vocabulary
    states = [state for _, state in layers if state is not None]
    weights = b * (a.parameters + sum(state.parameters for state in states))
    active = a.active + sum(state.matrices for state in states)
    held = sum(x.held for x in mixing)
    working = held + max(widest.scores + widest.activations, mlp) + logits
    stored = method.materialised
    attention_layers = sum(state is None for _, state in layers)
    return Cost(
        tokens=n,
        matrix_bytes=max(x.matrix for x in mixing),
        matrix_flops=top.matrix_flops,
        layer_bytes=max(x.matrix for x in mixing) * a.heads,
        layer_flops=top.flops,
        matrices=a.heads * attention_layers if stored else 0,
        all_scores_bytes=a.heads * sum(x.matrix for x in mixing) if stored else 0,
        attention_flops=flops,
        flops=None if flops is None else flops + 2 * active * n + 2 * a.vocabulary * a.hidden,
        weight_bytes=weights,
        cache_bytes=sum(x.cache for x in mixing),
        activation_bytes=max(widest.activations, mlp),
        score_bytes=widest.scores,
        logits_bytes=logits,
        all_logits_bytes=logits * n,
        working_bytes=working,
        peak_bytes=weights + working,
    )


def longest(size: Callable[[int], int], memory: int) -> int | None:
    """The most tokens whose `size` in bytes fits `memory`; 0 where not even one does, None where all do.

    Args:
        size: bytes at a number of tokens, never falling.
        memory: bytes.

    >>> longest(lambda n: matrix_bytes(n, 2), 80 * 10**9), longest(lambda n: 5, 10), longest(lambda n: n, 0)
    (200000, None, 0)
    """
    if size(FARTHEST) <= memory:
        return None
    low, high = 0, FARTHEST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= memory else (low, middle)
    return low


@dataclass(frozen=True)
class _Mixing:
    """One layer: scores of a head, operations, bytes kept after the forward and held during the prefill."""

    matrix: int
    matrix_flops: int | None
    flops: int | None
    cache: int
    held: int
    scores: int
    activations: int


def _layers(a: Architecture, method: Method) -> list[tuple[LayerPlan, StateSize | None]]:
    shape, states = a.shape, list(a.states)
    if method.mamba is not None:
        plan = parse_mamba(method.mamba)
        replaced = select(plan.layers, a.layers, shape.kinds)
        shape = replace(shape, kinds=kinds_of(shape.kinds, shape.windows, replaced))
        for index in replaced:
            states[index] = mamba2_state(a, plan)
    attention = method.attention
    if isinstance(attention, Pattern) and any(states):
        # A hybrid's recurrent layers are no place for a pattern.
        attention = Layers({i: attention for i, state in enumerate(states) if state is None})
    return list(zip(resolve(attention, shape, method.own_windows), states))


def _layer(
    a: Architecture,
    method: Method,
    plan: LayerPlan,
    state: StateSize | None,
    n: int,
    m: int,
    b: int,
    device: str,
    count: bool,
) -> _Mixing:
    if state is not None:
        kept = b * state.conv + SINGLE * state.state
        inside = m * (b * (2 * a.hidden + 4 * state.inner) + SINGLE * state.inner)
        each = n * state.flops // a.heads
        return _Mixing(SINGLE * state.state // a.heads, each, n * state.flops, kept, kept, 0, inside)
    rows = m * b * (2 * a.hidden + 3 * a.heads * a.head_dim)
    token = a.kv_token_bytes * b
    most = most_keys(plan, evicting=method.patched)
    kept = layer_bytes(n, token, most, evicting=method.patched)
    # Until the next forward a chunk's keys are there beside the old ones: transformers' window keeps a view of all.
    held = kept if most is None else max(kept, token * min(n, most + m) if not method.patched else kept)
    if method.patched and most is not None:
        rows += token * min(n, most + m)
    if method.materialised:
        repeated = 2 * n * a.heads * a.head_dim * b if a.heads > a.shape.kv_heads else 0
        scores = m * n * (a.heads * eager_bytes(b, device) + b)
        each = attention_flops(n * n, a.head_dim)
        return _Mixing(m * n * b, each, each * a.heads, kept, held, scores, rows + repeated)
    matrix = SINGLE * m
    seen = pairs(plan.pattern, n) if count else None
    if seen is None:
        return _Mixing(matrix, None, None, kept, held, 0, rows + matrix * a.heads)
    each = attention_flops(max(seen), a.head_dim)
    total = attention_flops(sum(seen) * a.heads // len(seen), a.head_dim)
    return _Mixing(matrix, each, total, kept, held, 0, rows + matrix * a.heads)
