"""The Mamba-2 layer that stands in the place of an attention layer: its sizes, its parameters, and what it computes.

With u the layer's input, H query heads, G key-value heads, P the head size, per key-value head g and query head h of
its group:

    x, B, C = conv(V u), conv(K u), conv(Q u)     V, K, Q as the attention layer had them, norms included
    step    = softplus(W u + b)                   one for each g
    S_g     = exp(step A_g) S_g + x_g B_g^T       a P x P matrix: all that is remembered
    y_h     = c_h S_g C_h + D_h x_g               c_h a number for each query head
    out     = O (y * silu(Z u + z))

What query heads of a group share, they still share: x, B, the step, the decay and the state. B and C are rotated
(RoPE) if the plan says so. In the classic form, as Mamba-2 was published (Dao and Gu 2024, arXiv 2405.21060, section
7), the convolution is followed by SiLU, the step multiplies x, the gated output passes a norm, and c is 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from hf_longctx.mamba.chunk import working
from hf_longctx.mamba.conv import causal_conv
from hf_longctx.mamba.ssd import CHUNK, ssd, ssd_step

#: Below this a step counts as this much, where x is divided by it: float16 must hold the quotient.
_SHORTEST_STEP = 1e-3


@dataclass(frozen=True)
class Form:
    """The sizes of a layer and how it is built.

    Attributes:
        hidden: width of the residual stream.
        heads: query heads, H.
        kv_heads: key-value heads, G.
        head_dim: numbers in a head, P; the state has as many columns.
        taps: of the convolution.
        scale: of the attention layer's scores.
        rope: whether B and C are rotated.
        classic: as Mamba-2 was published, rather than linear attention with its additions.
        qkv_bias: whether the projections in have a bias.
        out_bias: whether the projection out has one.
        eps: of the classic form's norm.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    taps: int = 4
    scale: float = 1.0
    rope: bool = True
    classic: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    eps: float = 1e-5

    @property
    def inner(self) -> int:
        """Width of the output of all heads."""
        return self.heads * self.head_dim

    @property
    def splits(self) -> tuple[int, int, int]:
        """Channels of x, B and C, which pass the convolution side by side."""
        return self.kv_heads * self.head_dim, self.kv_heads * self.head_dim, self.inner

    @property
    def conv_numbers(self) -> int:
        """Numbers that the convolution keeps for one sequence: taps less one for each channel."""
        return (self.taps - 1) * sum(self.splits)

    @property
    def state_numbers(self) -> int:
        """Numbers in the state of one sequence: a square matrix a key-value head.

        >>> Form(4096, heads=32, kv_heads=8, head_dim=128).state_numbers * 4  # Llama 3 8B: 512 KiB a layer
        524288
        """
        return self.kv_heads * self.head_dim**2

    @property
    def flops(self) -> int:
        """Operations a token of convolution and scan, in chunks of Q (arXiv 2405.21060, section 6).

        Scores and their sums over values, 2 Q P each a query head; reading and writing the state, 2 P P a query head
        and a key-value head; and carrying it, 2 P P a chunk and key-value head.
        """
        size, state = self.head_dim, self.head_dim**2
        scan = 4 * CHUNK * size * self.heads + 2 * state * (self.heads + self.kv_heads)
        return 2 * self.taps * sum(self.splits) + scan + 2 * state * self.kv_heads // CHUNK

    @property
    def matrices(self) -> int:
        """Parameters of the projections beyond those of the attention layer: gate and step."""
        return self.hidden * (self.inner + self.kv_heads)

    @property
    def added(self) -> int:
        """All parameters beyond those of the attention layer: the convolution, decay, skip and biases too."""
        by_head = 2 * self.kv_heads + (1 if self.classic else 2) * self.heads
        return self.matrices + (self.taps + 1) * sum(self.splits) + by_head + self.inner


class Mamba2Mixer(nn.Module):
    """A Mamba-2 layer with the projections of an attention layer. All projections are modules, called as such.

    Args:
        form: its sizes.
        q_norm: applied to each query head, for models that normalise queries and keys; None without.
        k_norm: applied to each key head.
        device: where the parameters are made.
        dtype: of the parameters; those by head (decay, step bias, skip, scale) are float32.
    """

    def __init__(
        self,
        form: Form,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        values, _, inner = form.splits
        self.form = form
        self.q_proj = nn.Linear(form.hidden, inner, bias=form.qkv_bias, **where)
        self.k_proj = nn.Linear(form.hidden, values, bias=form.qkv_bias, **where)
        self.v_proj = nn.Linear(form.hidden, values, bias=form.qkv_bias, **where)
        self.o_proj = nn.Linear(inner, form.hidden, bias=form.out_bias, **where)
        self.z_proj = nn.Linear(form.hidden, inner, bias=not form.classic, **where)
        self.dt_proj = nn.Linear(form.hidden, form.kv_heads, bias=False, **where)
        self.q_norm, self.k_norm = q_norm, k_norm
        self.norm_weight = nn.Parameter(torch.empty(inner, **where)) if form.classic else None
        self.conv_weight = nn.Parameter(torch.empty(sum(form.splits), form.taps, **where))
        self.conv_bias = nn.Parameter(torch.empty(sum(form.splits), **where))
        exact: dict[str, Any] = {"device": device, "dtype": torch.float32}
        self.A_log = nn.Parameter(torch.empty(form.kv_heads, **exact))
        self.dt_bias = nn.Parameter(torch.empty(form.kv_heads, **exact))
        self.D = nn.Parameter(torch.empty(form.heads, **exact))
        self.scale = None if form.classic else nn.Parameter(torch.empty(form.heads, **exact))

    def mix(
        self,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor] | None = None,
        *,
        past: tuple[Tensor, Tensor] | None = None,
        valid: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """What the layer makes of some tokens, and what it then remembers.

        Args:
            hidden: (b, l, hidden).
            rotary: cosines and sines, (b or 1, l, rotated size) each; needed if the form rotates.
            past: what it remembered before, as returned; its state is changed in place where one token is read
                without gradients. None at the beginning.
            valid: (b, l) bool, False for padding, which changes nothing on any side; all real if None.
            documents: (b, l) integers that change where a new document begins, which starts from nothing.

        Returns:
            The output (b, l, hidden), which means nothing at padding, and a pair: the last inputs of the convolution
            (b, channels, taps - 1) in the working dtype, and the state (b, G, P, P), float32 (float64 for float64).

        Raises:
            ValueError: no `rotary` though the form rotates.
        """
        form = self.form
        q, k = (p(hidden).unflatten(-1, (-1, form.head_dim)) for p in (self.q_proj, self.k_proj))
        q = q if self.q_norm is None else self.q_norm(q)
        k = k if self.k_norm is None else self.k_norm(k)
        v = self.v_proj(hidden)
        together = torch.cat([v, k.flatten(-2).to(v.dtype), q.flatten(-2).to(v.dtype)], dim=-1)
        conv = None if past is None else past[0]
        together, conv = causal_conv(
            together, self.conv_weight, self.conv_bias, past=conv, valid=valid, documents=documents
        )
        if form.classic:
            together = silu(together)
        x, B, C = (t.unflatten(-1, (-1, form.head_dim)) for t in together.split(form.splits, dim=-1))
        if form.rope:
            if rotary is None:
                raise ValueError("rotary is None, but this layer rotates B and C: pass position_embeddings")
            B, C = (_rotated(t, *rotary) for t in (B, C))
        C = C if self.scale is None else (C * self.scale[:, None]).to(x.dtype)
        exact = working(x.dtype)
        step = softplus(self.dt_proj(hidden).to(exact) + self.dt_bias.to(exact))
        y, state = self._scan(x, step, B, C, None if past is None else past[1], valid, documents)
        # Head h reads the state of key-value head h // (H / G).
        skip = self.D.to(y.dtype).view(form.kv_heads, -1, 1) * x[:, :, :, None]
        y = (y + skip.flatten(2, 3)).flatten(2) * silu(self.z_proj(hidden))
        return self.o_proj(self._normed(y)), (conv, state)

    def _scan(
        self,
        x: Tensor,
        step: Tensor,
        B: Tensor,
        C: Tensor,
        state: Tensor | None,
        valid: Tensor | None,
        documents: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        A = -self.A_log.to(step.dtype).exp()
        if valid is not None:
            step = step.masked_fill(~valid[..., None], 1)  # padding may hold NaN, and NaN times 0 is NaN
        if not self.form.classic:
            step = step.clamp(min=_SHORTEST_STEP)
            x = (x / step[..., None]).to(x.dtype)  # the scan multiplies by the step
        if valid is not None:
            step = step * valid[..., None]
        if state is not None and x.shape[1] == 1 and not torch.is_grad_enabled():
            return ssd_step(state, x[:, 0], step[:, 0], A, B[:, 0], C[:, 0])[:, None], state
        y, final = ssd(x, step, A, B, C, initial_state=state, return_final_state=True, segments=documents)
        return y, final

    def _normed(self, y: Tensor) -> Tensor:
        """RMSNorm over each key-value group's channels; nothing without a norm."""
        if self.norm_weight is None:
            return y
        groups = y.to(working(y.dtype)).unflatten(-1, (self.form.kv_heads, -1))
        groups = groups * torch.rsqrt(groups.square().mean(-1, keepdim=True) + self.form.eps)
        return (groups.flatten(-2) * self.norm_weight).to(y.dtype)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE (arXiv 2104.09864) on x (b, l, heads, p): number i is paired with number i + half of the rotated part."""
    cos, sin = cos[:, :, None].to(x.dtype), sin[:, :, None].to(x.dtype)
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    return torch.cat([turned * cos + torch.cat([-second, first], dim=-1) * sin, rest], dim=-1)
