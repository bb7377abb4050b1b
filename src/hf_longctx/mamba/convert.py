"""From the weights of an attention layer to those of a Mamba-2 layer: weights in, weights out."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from hf_longctx.mamba.mamba2 import Mamba2
from hf_longctx.mamba.mixer import Form

#: silu of it is 1: a gate with this bias and no weights is open.
OPEN_GATE = 1.278464542761074
#: What softplus of it is 1.
STEP_OF_1 = math.log(math.e - 1)


def convert(weights: Mapping[str, Tensor], form: Form, plan: Mamba2, *, layer: int = 0) -> dict[str, Tensor]:
    """The parameters of a `Mamba2Mixer` at its start.

    With `attention`, V, K and Q make x, B and C, and O the output (biases and head norms carried over); the
    convolution passes the current token alone, the gate is open, steps are 1 and the skip is 0. So the layer computes
    y_i = (1 - a) scale sum_{j <= i} a^(i - j) (q_i . k_j) v_j with a = exp(A) by head: causal linear attention
    (Katharopoulos et al. 2020, arXiv 2006.16236, equation 9) that forgets. The weights a^(i - j) sum to 1 / (1 - a),
    which takes the place of that equation's normaliser, so that a long memory does not make for a large output.

    With `mamba-in-llama` the same four are copied into the classic form, without biases and norms, and the rest is
    drawn as Mamba-2 does (Wang et al. 2024, arXiv 2408.15237, section 3). `random` draws the projections too.

    Args:
        weights: of the attention layer, by the names `q_proj.weight`, `k_proj.weight`, `v_proj.weight`,
            `o_proj.weight`, their biases, and `q_norm.*`, `k_norm.*` where it has norms. (out, in) each.
        form: the new layer's sizes.
        plan: from what it starts.
        layer: index of the layer, so that no two layers draw the same.

    Returns:
        New tensors for all parameters, in the dtype of the weights; those by head float32.
    """
    like = weights["q_proj.weight"]
    draw = _Draw(plan.seed * 10007 + layer, like)
    channels, groups = sum(form.splits), form.kv_heads
    if plan.init == "random":
        made = {
            name: draw.normal(*weights[name].shape, std=weights[name].shape[1] ** -0.5)
            for name in ("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight")
        }
    else:
        dropped = ("bias", "norm") if plan.classic else ()
        made = {name: t.detach().clone() for name, t in weights.items() if not any(d in name for d in dropped)}
    if plan.classic:
        reach = form.taps**-0.5
        # Steps from 0.001 to 0.1, equal in ratio, through the inverse of softplus; rates from 1 to 16.
        step = 0.001 * 100 ** draw.uniform(groups, low=0, high=1)
        made |= {
            "z_proj.weight": draw.normal(form.inner, form.hidden, std=form.hidden**-0.5),
            "dt_proj.weight": draw.normal(groups, form.hidden, std=form.hidden**-0.5),
            "norm_weight": like.new_ones(form.inner),
            "conv_weight": draw.uniform(channels, form.taps, low=-reach, high=reach).to(like),
            "conv_bias": draw.uniform(channels, low=-reach, high=reach).to(like),
            "A_log": draw.uniform(groups, low=1, high=16).log(),
            "dt_bias": step + (-(-step).expm1()).log(),
            "D": draw.uniform(form.heads, low=1, high=1),
        }
        return made
    delta = like.new_zeros(channels, form.taps)
    delta[:, -1] = 1
    rates = 1 / memories(groups, plan.memory)
    scale = -form.scale * (-rates).expm1().repeat_interleave(form.heads // groups)
    return made | {
        "z_proj.weight": like.new_zeros(form.inner, form.hidden),
        "z_proj.bias": like.new_full((form.inner,), OPEN_GATE),
        "dt_proj.weight": like.new_zeros(groups, form.hidden),
        "conv_weight": delta,
        "conv_bias": like.new_zeros(channels),
        "A_log": rates.log().to(like.device, torch.float32),
        "dt_bias": like.new_full((groups,), STEP_OF_1, dtype=torch.float32),
        "D": like.new_zeros(form.heads, dtype=torch.float32),
        "scale": scale.to(like.device, torch.float32),
    }


def memories(heads: int, longest: int) -> Tensor:
    """Tokens after which each head has kept 1/e of a token: from `longest` down to its square root, equal in ratio.

    >>> memories(3, 256).tolist(), memories(1, 256).tolist()
    ([256.0, 64.0, 16.0], [256.0])
    """
    share = torch.linspace(1, 0.5, heads, dtype=torch.float64) if heads > 1 else torch.ones(1, dtype=torch.float64)
    return (longest**share).round(decimals=9)


class _Draw:
    """Numbers drawn on the CPU from a generator of their own, given in the dtype and on the device of a tensor."""

    def __init__(self, seed: int, like: Tensor) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._like = like

    def normal(self, *shape: int, std: float) -> Tensor:
        """Normal numbers around 0, in the dtype of the weights."""
        return (torch.randn(*shape, generator=self._generator, device="cpu") * std).to(self._like)

    def uniform(self, *shape: int, low: float, high: float) -> Tensor:
        """Equal chances between two numbers, float32."""
        drawn = torch.rand(*shape, generator=self._generator, device="cpu", dtype=torch.float32)
        return (low + (high - low) * drawn).to(self._like.device)
