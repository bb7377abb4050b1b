"""torch's private operators are what `kernels.py` was written for. If this fails, that one file needs a look."""

import math

import pytest
import torch

from hf_longctx.attention import kernels


def test_the_operators_have_the_arguments_they_had():
    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default._schema
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default._schema
    assert tuple(a.name for a in forward.arguments) == kernels.FORWARD_ARGUMENTS
    assert tuple(a.name for a in backward.arguments) == kernels.BACKWARD_ARGUMENTS
    assert [r.name for r in forward.returns] == ["output", "logsumexp"]
    assert [r.name for r in backward.returns] == ["grad_query", "grad_key", "grad_value"]


@pytest.mark.parametrize("dtype", kernels.DTYPES)
@pytest.mark.parametrize("how", ["all", "causal", "mask"])
def test_output_and_log_sum_exp(dtype, how):
    q, k, v = (torch.randn(2, 3, 20, 40, dtype=dtype) for _ in range(3))
    seen = {
        "all": torch.ones(20, 20),
        "causal": torch.ones(20, 20).tril(),
        "mask": torch.ones(20, 20).triu(-3).tril(2),
    }
    seen = seen[how].bool()
    mask = torch.zeros(20, 20, dtype=kernels.mask_dtype(dtype)).masked_fill(~seen, -math.inf)
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
    assert "cuda" in kernels.missing(torch.device("cuda"), torch.float32)
    assert "float8" in kernels.missing(torch.device("cpu"), torch.float8_e5m2)
    assert kernels.misfit(64, 64) is None
    assert "64 and 32" in kernels.misfit(64, 32)
