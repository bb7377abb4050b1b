"""The layer and its conversion: what it starts as, what it keeps, and that all of it can be learned."""

from __future__ import annotations

import pytest
import torch

from far_device import FAR, FarDevice
from hf_longctx.mamba import INITS, Mamba2
from hf_longctx.mamba.convert import convert, memories
from hf_longctx.mamba.mixer import Form, Mamba2Mixer

SMALL = {"hidden": 12, "heads": 6, "kv_heads": 2, "head_dim": 4}


def teacher(seed: int = 0, *, bias: bool = True) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = {"q_proj": (24, 12), "k_proj": (8, 12), "v_proj": (8, 12), "o_proj": (12, 24)}
    weights = {f"{name}.weight": torch.randn(*s, generator=g) / 3 for name, s in shapes.items()}
    if bias:
        weights |= {f"{name}.bias": torch.randn(s[0], generator=g) for name, s in shapes.items() if name != "o_proj"}
    return weights


def mixer(init: str = "attention", **fields) -> Mamba2Mixer:
    plan = Mamba2("0", init, **fields)
    weights = teacher()
    form = Form(**SMALL, taps=plan.conv, scale=0.5, rope=plan.rotates, classic=plan.classic, qkv_bias=not plan.classic)
    made = Mamba2Mixer(form)
    made.load_state_dict(convert(weights, form, plan, layer=0))
    return made.eval()


def rotary(length: int, batch: int = 1):
    angle = torch.arange(length)[:, None] * torch.tensor([1.0, 0.1])
    angle = torch.cat([angle, angle], -1).expand(batch, -1, -1)
    return angle.cos(), angle.sin()


@pytest.mark.parametrize("memory", [1, 64, 1024])
def test_the_start_is_decayed_linear_attention(memory):
    """By the dense formula, a token pair at a time, in float64."""
    weights, hidden = teacher(), torch.randn(2, 30, 12)
    q, k, v = (
        (hidden @ weights[f"{p}_proj.weight"].T + weights[f"{p}_proj.bias"]).double().unflatten(-1, (-1, 4))
        for p in "qkv"
    )
    angle = torch.arange(30.0).double()[:, None] * torch.tensor([1.0, 0.1]).double()
    spin = torch.polar(torch.ones_like(angle), angle)[:, None]
    q, k = (torch.complex(t[..., :2], t[..., 2:]) * spin for t in (q, k))
    decay = (-1 / memories(2, memory)).repeat_interleave(3)
    out = torch.zeros(2, 30, 6, 4, dtype=torch.float64)
    for head in range(6):
        for i in range(30):
            for j in range(i + 1):
                score = 0.5 * (q[:, i, head] * k[:, j, head // 3].conj()).real.sum(-1)
                weight = (1 - torch.exp(decay[head])) * torch.exp((i - j) * decay[head])
                out[:, i, head] += (weight * score)[:, None] * v[:, j, head // 3]
    expected = (out.flatten(2) @ weights["o_proj.weight"].T.double()).float()
    y, (_, state) = mixer(memory=memory).mix(hidden, rotary(30, 2))
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    assert state.shape == (2, 2, 4, 4)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("rope", [True, False])
@torch.no_grad()
def test_padding_and_packing_and_splits(init, rope):
    """A row with holes equals the row without; documents equal themselves alone; any split equals the whole."""
    layer, hidden = mixer(init, rope=rope), torch.randn(1, 24, 12)
    valid = torch.ones(1, 24, dtype=torch.bool)
    valid[0, [0, 1, 7, 8, 15, 22, 23]] = False
    real = valid[0]
    count = int(real.sum())
    cos, sin = rotary(24)
    at = (valid.long().cumsum(1) - 1).clamp(min=0)[0]
    spread = (cos[:, at], sin[:, at])
    whole, left = layer.mix(hidden[:, real], rotary(count))
    y, padded = layer.mix(hidden, spread, valid=valid)
    torch.testing.assert_close((y[:, real], *padded), (whole, *left), atol=1e-5, rtol=1e-5)
    past, parts = None, []
    for start, stop in ((0, 9), (9, 10), (10, 11), (11, 24)):
        part, past = layer.mix(
            hidden[:, start:stop], tuple(t[:, start:stop] for t in spread), past=past, valid=valid[:, start:stop]
        )
        parts.append(part)
    torch.testing.assert_close((torch.cat(parts, 1)[:, real], *past), (whole, *left), atol=1e-5, rtol=1e-5)

    documents = torch.arange(24)[None].ge(10).long() + torch.arange(24)[None].ge(21).long()
    restart = torch.cat([torch.arange(n) for n in (10, 11, 3)])
    y, left = layer.mix(hidden, (cos[:, restart], sin[:, restart]), documents=documents)
    alone = [layer.mix(part, rotary(part.shape[1])) for part in hidden.split([10, 11, 3], 1)]
    torch.testing.assert_close(y, torch.cat([a for a, _ in alone], 1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(left, alone[-1][1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("init", INITS)
@torch.no_grad()
def test_padding_may_hold_what_is_not_a_number(init):
    layer, hidden = mixer(init, rope=False), torch.randn(1, 12, 12)
    valid = torch.arange(12)[None] >= 4
    expected, (_, state) = layer.mix(hidden, valid=valid)
    hidden[:, :4] = float("nan")
    y, (_, other) = layer.mix(hidden, valid=valid)
    assert torch.equal(y[:, 4:], expected[:, 4:])
    assert torch.equal(other, state)


@pytest.mark.parametrize("init", INITS)
def test_every_parameter_learns(init):
    layer = mixer(init)
    out, _ = layer.mix(torch.randn(2, 20, 12), rotary(20))
    out.square().mean().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_conversion_is_pure_and_draws_by_seed_and_layer():
    weights = teacher()
    before = {k: t.clone() for k, t in weights.items()}
    form = Form(**SMALL, classic=True)
    drawn = [
        convert(weights, form, Mamba2("0", "random", seed=seed), layer=layer)
        for seed, layer in ((1, 0), (1, 0), (1, 1), (2, 0))
    ]
    for name in drawn[0]:
        assert torch.equal(drawn[0][name], drawn[1][name])
    for other in drawn[2:]:
        assert not torch.equal(drawn[0]["q_proj.weight"], other["q_proj.weight"])
        assert not torch.equal(drawn[0]["A_log"], other["A_log"])
    copied = convert(weights, form, Mamba2("0", "mamba-in-llama"))
    assert torch.equal(copied["q_proj.weight"], weights["q_proj.weight"])
    assert not any("_proj.bias" in name for name in copied)
    copied["q_proj.weight"].zero_()
    assert all(torch.equal(weights[k], t) for k, t in before.items())


def test_published_starts():
    """Rates from 1 to 16 and steps from 0.001 to 0.1, as Mamba-2 is begun."""
    made = convert(teacher(), Form(**SMALL, classic=True), Mamba2("0", "mamba-in-llama"))
    rates, steps = made["A_log"].exp(), torch.nn.functional.softplus(made["dt_bias"])
    assert ((rates >= 1) & (rates <= 16)).all()
    assert ((steps >= 0.99e-3) & (steps <= 0.101)).all()
    assert (made["D"] == 1).all()


@pytest.mark.parametrize("init", INITS)
def test_sizes_are_counted(init):
    layer = mixer(init)
    _, (conv, state) = layer.mix(torch.randn(1, 9, 12), rotary(9))
    assert (conv.numel(), state.numel()) == (layer.form.conv_numbers, layer.form.state_numbers)
    carried = sum(t.numel() for t in teacher(bias=not layer.form.classic).values())
    assert sum(p.numel() for p in layer.parameters()) == carried + layer.form.added


def test_low_precision():
    layer, hidden = mixer(), torch.randn(1, 40, 12)
    exact, _ = layer.mix(hidden, rotary(40))
    low, (_, state) = layer.to(torch.bfloat16).mix(hidden.bfloat16(), rotary(40))
    assert (low.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    assert (low.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_rotation_needs_its_angles():
    with pytest.raises(ValueError, match="position_embeddings"):
        mixer().mix(torch.randn(1, 3, 12))


@pytest.mark.parametrize("how", ["plain", "padded", "packed"])
@torch.no_grad()
def test_no_tensor_stays_on_another_device(how, monkeypatch):
    """As on a GPU: prompt, some tokens more, one token more."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *kind: False)  # it does not know the far device
    layer, hidden, angles = mixer(), torch.randn(2, 12, 12), rotary(12, 2)
    told = {
        "plain": {},
        "padded": {"valid": torch.arange(12) >= torch.tensor([[0], [3]])},
        "packed": {"documents": (torch.arange(12) >= 4).long().expand(2, -1)},
    }[how]

    def run(layer, hidden, angles, told):
        past, parts = None, []
        for start, stop in ((0, 7), (7, 11), (11, 12)):
            part = {name: t[:, start:stop] for name, t in told.items() if not (past and name == "documents")}
            rotated = tuple(t[:, start:stop] for t in angles)
            out, past = layer.mix(hidden[:, start:stop], rotated, past=past, **part)
            parts.append(out)
        return torch.cat(parts, 1)

    expected = run(layer, hidden, angles, told)
    with FarDevice():
        far = mixer()
        far.load_state_dict({name: t.to(FAR) for name, t in layer.state_dict().items()}, assign=True)
        told = {name: t.to(FAR) for name, t in told.items()}
        got = run(far, hidden.to(FAR), tuple(t.to(FAR) for t in angles), told)
    real = told["valid"].near if how == "padded" else slice(None)
    torch.testing.assert_close(got.near[real], expected[real], atol=1e-6, rtol=1e-6)
