"""What one decoder layer saves for its backward pass, and what that pass takes, in bytes a token.

Read off the models' own code operation by operation, as Korthikanti et al. 2022 do (arXiv 2205.05198, section 4.1). A
test compares it with what PyTorch really saves, byte by byte.
"""

from __future__ import annotations

from dataclasses import dataclass

from .trained_sizes import SINGLE, Setting, Sizes


@dataclass(frozen=True)
class LayerTokens:
    """Bytes a token of one layer.

    Attributes:
        kept: the layer's input, which checkpointing keeps.
        attention: what attention's half saves for the backward pass, the input left out.
        mlp: what the MLP's half saves.
        attention_backward: gradients and copies while attention's backward runs.
        mlp_backward: the same for the MLP's, less what it has let go.
        keys: keys and values, which are part of `attention`.
    """

    kept: int
    attention: int
    mlp: int
    attention_backward: int
    mlp_backward: int
    keys: int

    @property
    def saved(self) -> int:
        """Both halves."""
        return self.attention + self.mlp

    @property
    def peak(self) -> int:
        """The most while one layer's backward runs: at the MLP, or later at attention, when the MLP's half is gone."""
        return max(self.saved + self.mlp_backward, self.attention + self.attention_backward)


def layer_tokens(s: Sizes, how: Setting) -> LayerTokens:
    """What one layer saves, operation by operation.

    A norm saves its input in float32 and one number a row, and where its weight is trained its result before the
    weight. A linear layer whose weight (or LoRA's A) is trained saves its input; under autocast each of them has a
    16-bit copy of its own. Attention saves queries, keys, values, its result, and a log-sum-exp a row and head (Dao
    et al. 2022, arXiv 2205.14135, section 3.1). A gated MLP saves gate, activation and up, and their product where
    `down` is trained.

    In backward the MLP's product has three gradients of width I at once. Attention holds the gradients of its result
    and of queries, keys and values: in the engine as float32 sums beside a kernel's own and copies of three operands
    with their heads stacked; on CUDA as FlashAttention-2 has them, a float32 sum for the queries and keys' and values'
    gradients for every query head (arXiv 2307.08691, section 3.1.2).
    """
    a, b, r = s.shape, how.product, how.stream
    h, i, q, k = a.hidden, a.intermediate, a.heads * a.head_dim, a.shape.kv_heads * a.head_dim
    whole, adapters, own = how.tune == "full", how.tune != "full", how.autocast
    # A 16-bit stream is copied to float32; a float32 one is the sum itself, of which the first is the layer's input.
    norm = (SINGLE if r < SINGLE else r) * h + (0 if how.tune == "lora" else r * h) + SINGLE
    first = norm - (r * h if r >= SINGLE else 0)
    attention = first + b * (h * (s.inputs if own else 1) + 2 * q + 2 * k) + SINGLE * a.heads
    if adapters:
        attention += b * how.rank * (s.inputs + 1) + (b * q if own else 0)
    if s.head_norms:
        # Over queries and keys, one number for each head.
        attention += (q + k) * (max(b, SINGLE) + (0 if how.tune == "lora" else b)) + SINGLE * (q + k) // a.head_dim
    mlp = (s.norms - 1) * norm + 3 * b * i
    if whole:
        mlp += b * (i + h * (2 if own else 1))
    if how.cuda:
        repeated = 2 * q * b if a.heads > a.shape.kv_heads else 0
        backward = b * (2 * q + 2 * k) + SINGLE * q + repeated
    else:
        backward = 4 * b * q + (SINGLE + b) * (q + 2 * k)
    return LayerTokens(
        kept=r * h,
        attention=attention,
        mlp=mlp,
        attention_backward=r * h + backward,
        mlp_backward=(r + b) * h + (2 if whole else 3) * b * i,
        keys=2 * k * b,
    )
