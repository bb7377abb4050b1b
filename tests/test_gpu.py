"""The same contract on CUDA in bfloat16, and the operator by itself. Skipped without a GPU; not yet run on one."""

from __future__ import annotations

import pytest
import torch

import hf_longctx as lc
from attention_cases import error, gradients, plain, rounding, seen
from contract import CASES, PATTERNS, case_of, expected, run, single_patterns
from families import FAMILIES, SINKS, build, tokens
from hf_longctx.attention import BACKENDS, attend, check_backend
from hf_longctx.patterns import Pattern, gallery, parse
from hybrids import HYBRIDS, hybrid

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

CUDA = torch.device("cuda", 0)
#: `reference` computes in float32 and stands for itself.
TESTED = [b for b in BACKENDS if b != "reference"]


def can(backend: str, patterns: list[Pattern], dtype: torch.dtype, sinks: bool = False) -> None:
    """Skip, with the reason, what a backend says it cannot do."""
    for pattern in patterns:
        try:
            check_backend(pattern, backend, device=CUDA, dtype=dtype, needs_grad=True, sinks=sinks)
        except ValueError as reason:
            pytest.skip(str(reason))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("backend", TESTED)
def test_contract(name, backend, family, case):
    """flash-attention's rule: error against float32 at most twice that of eager attention in the same dtype."""
    can(backend, single_patterns(name), torch.bfloat16, family in SINKS)
    exact, real = expected(family, name, case, device="cuda")
    usual, _ = expected(family, name, case, device="cuda", dtype=torch.bfloat16)
    model = lc.patch(build(family).to("cuda", torch.bfloat16), attention=PATTERNS[name], backend=backend)
    got = run(model, case_of(case, model.config)).float()
    assert error(got[real], exact[real]) <= 2 * error(usual.float()[real], exact[real]) + 1e-3


#: One of each kind, and the joins that the engine treats apart.
SOME = [p for _, p in gallery()] + [parse(t) for t in ("window:5+global:2", "window:300+global:4", "bigbird")]


@pytest.mark.parametrize("where", ["plain", "left", "segments"])
@pytest.mark.parametrize("size", [40, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("pattern", SOME, ids=str)
@pytest.mark.parametrize("backend", TESTED)
def test_attend_forward_and_backward(backend, pattern, dtype, size, where):
    """Outputs and each gradient at 700 tokens, under the same rule."""
    can(backend, [pattern], dtype)
    rows = keys = 700
    rng = torch.Generator().manual_seed(0)
    exact_inputs = [torch.randn(2, h, keys, size, generator=rng).to(CUDA, dtype).float() for h in (4, 2, 2)]
    at = torch.arange(keys).expand(2, keys)
    kinds = {
        "plain": {},
        "left": {"valid": at >= torch.tensor([[0], [90]])},
        "segments": {"segments": (at >= 300).long() + (at >= 431)},
    }
    mask = seen(pattern, 2, rows, keys, kinds[where], 2).to(CUDA)
    how = {k: v.to(CUDA) for k, v in kinds[where].items()}
    inputs = [x.to(dtype).requires_grad_() for x in exact_inputs]
    exact_inputs = [x.requires_grad_() for x in exact_inputs]
    exact = attend(*exact_inputs, pattern, backend="reference", **how)
    usual, out = plain(*inputs, mask), attend(*inputs, pattern, backend=backend, **how)
    assert out.dtype == dtype
    assert error(out, exact) <= 2 * error(usual, exact) + rounding(dtype, exact)
    for got, common, want in zip(
        *(gradients(o, i) for o, i in ((out, inputs), (usual, inputs), (exact, exact_inputs)))
    ):
        assert error(got, want) <= 2 * error(common, want) + 2 * rounding(dtype, want)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", HYBRIDS)
@torch.no_grad()
def test_hybrids(family, case):
    """Mamba-2 layers, by whichever kernels are installed, against float32 on the CPU: twice bfloat16's error there."""
    model = hybrid(family)
    case = case_of(case, model.config)
    real = case.tensors()[1].bool()
    exact = run(model, case)[real]
    usual = run(hybrid(family).to(torch.bfloat16), case).float()[real]
    got = run(hybrid(family).to(CUDA, torch.bfloat16), case).float().cpu()[real]
    assert error(got, exact) <= 2 * error(usual, exact) + 1e-2


def test_unpatched_on_another_device():
    model, ids = build("llama"), tokens(1, 20)
    with torch.no_grad():
        expected_logits = model(ids).logits
        lc.patch(model, attention="window:8+global:2", rope="yarn:2").cuda()
        model(ids.cuda())
        lc.unpatch(model)
        torch.testing.assert_close(model(ids.cuda()).logits.cpu(), expected_logits, atol=1e-4, rtol=1e-4)
