"""torch's private operators are what `kernels.py` was written for. If this fails, that one file needs a look."""

import math

import pytest
import torch

from hf_longctx.attention import kernels

#: What the operators give, as far as it has names.
RETURNS = {
    "_scaled_dot_product_flash_attention_for_cpu": ["output", "logsumexp"],
    "_scaled_dot_product_flash_attention_for_cpu_backward": ["grad_query", "grad_key", "grad_value"],
    "_efficient_attention_forward": [
        *("output", "logsumexp", "philox_seed", "philox_offset"),
        *("max_seqlen_batch_q", "max_seqlen_batch_k"),
    ],
    "_efficient_attention_backward": ["", "", "", ""],
}


@pytest.mark.parametrize("name", kernels.ARGUMENTS)
def test_the_operators_have_the_arguments_they_had(name):
    schema = getattr(torch.ops.aten, name).default._schema
    assert [a.name for a in schema.arguments] == kernels.ARGUMENTS[name].split()
    assert [r.name for r in schema.returns] == RETURNS[name]


@pytest.mark.parametrize("size", [8, 40, 59])
@pytest.mark.parametrize("dtype", kernels.DTYPES["cuda"])
def test_cuda_is_called_as_its_operators_say(dtype, size):
    """On the device "meta" the real operator checks the types of its arguments and tells the shapes of its results.

    Backward is called as it demands in `test_far.py`: torch 2.13's own shapes of it have forgotten an argument.
    """
    q, k = (torch.empty(2, 5, n, size, dtype=dtype, device="meta") for n in (33, 70))
    mask = kernels.bias(torch.empty(33, 70, dtype=torch.bool, device="meta"), q)
    assert mask.dtype == dtype
    assert mask.stride(0) == 72
    for how in ({}, {"mask": mask}, {"causal": True}):
        out, lse = kernels.forward(q, k, k, scale=0.2, **how)
        assert (out.shape, out.dtype, lse.shape, lse.dtype) == (q.shape, dtype, q.shape[:3], torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", kernels.DTYPES["cuda"])
@pytest.mark.parametrize("how", ["all", "causal", "mask"])
def test_the_cuda_kernel(dtype, how):
    """Output, log-sum-exp and each part's gradients against the formula; a hidden row is 0."""
    rows, keys, size = 70, 70, 40
    q, k, v, grad = (torch.randn(2, 3, rows, size, device="cuda", dtype=dtype) for _ in range(4))
    seen = torch.ones(rows, keys, dtype=torch.bool, device="cuda")
    seen = {"all": seen, "causal": seen.tril(), "mask": seen.triu(-3).tril(2)}[how]
    if how == "mask":
        seen[5] = False
    given = {"causal": how == "causal", "mask": kernels.bias(seen, q) if how == "mask" else None}
    out, lse = kernels.forward(q, k, v, scale=0.2, **given)
    blind = ~seen.any(-1)
    assert bool((out[:, :, blind] == 0).all())
    assert bool((lse[:, :, blind] == 0).all())
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    scores = (0.2 * exact[0] @ exact[1].transpose(-1, -2)).masked_fill(~(seen | blind[:, None]), -math.inf)
    want = (scores.softmax(-1) @ exact[2]).masked_fill(blind[:, None], 0)
    close = 1e-4 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(out.double(), want, atol=close, rtol=close)
    shown = lse[:, :, ~blind].double()
    torch.testing.assert_close(shown, scores.logsumexp(-1)[:, :, ~blind], atol=close, rtol=close)
    lse = lse.masked_fill(blind, math.inf)
    shares = kernels.backward(grad, q, k, v, out, lse, scale=0.2, **given)
    for got, exactly in zip(shares, torch.autograd.grad(want, exact, grad.double())):
        torch.testing.assert_close(got.double(), exactly, atol=8 * close, rtol=8 * close)


@pytest.mark.parametrize("dtype", kernels.DTYPES["cpu"])
@pytest.mark.parametrize("how", ["all", "causal", "mask"])
def test_output_and_log_sum_exp(dtype, how):
    q, k, v = (torch.randn(2, 3, 20, 40, dtype=dtype) for _ in range(3))
    seen = {
        "all": torch.ones(20, 20),
        "causal": torch.ones(20, 20).tril(),
        "mask": torch.ones(20, 20).triu(-3).tril(2),
    }
    seen = seen[how].bool()
    mask = kernels.bias(seen, q)
    out, lse = kernels.forward(q, k, v, scale=0.2, causal=how == "causal", mask=mask if how == "mask" else None)
    scores = (0.2 * q.double() @ k.double().transpose(-1, -2)).masked_fill(~seen, -math.inf)
    close = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 3e-2)
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1), atol=close, rtol=0)
    torch.testing.assert_close(out.double(), scores.softmax(-1) @ v.double(), atol=close, rtol=0)
    assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_backward_of_parts_sums_to_the_whole():
    """With the merged output and log-sum-exp, each part's gradients are its share."""
    q, k, v, grad = (torch.randn(1, 2, 30, 16) for _ in range(4))
    out, lse = kernels.forward(q, k, v, scale=0.25)
    whole = kernels.backward(grad, q, k, v, out, lse, scale=0.25)
    parts = [
        kernels.backward(grad, q, k[:, :, s], v[:, :, s], out, lse, scale=0.25) for s in (slice(0, 7), slice(7, 30))
    ]
    torch.testing.assert_close(parts[0][0] + parts[1][0], whole[0])
    for i in (1, 2):
        torch.testing.assert_close(torch.cat([p[i] for p in parts], dim=2), whole[i])


def test_a_hidden_row_has_no_log_sum_exp():
    """The engine must put -inf there itself; were this to change, the special case could go."""
    q = torch.randn(1, 1, 2, 8)
    _, lse = kernels.forward(q, q, q, scale=1.0, mask=torch.tensor([[0.0, 0.0], [-math.inf, -math.inf]]))
    assert lse[0, 0, 1] == 0


def test_what_has_no_kernel_is_said():
    assert kernels.missing(torch.device("cpu"), torch.float32) is None
    assert kernels.missing(torch.device("cuda"), torch.bfloat16) is None
    assert "float64" in kernels.missing(torch.device("cuda"), torch.float64)
    assert "xpu" in kernels.missing(torch.device("xpu"), torch.float32)
    assert "float8" in kernels.missing(torch.device("cpu"), torch.float8_e5m2)
    assert kernels.misfit(64, 64) is None
    assert "64 and 32" in kernels.misfit(64, 32)
