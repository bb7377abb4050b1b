"""Bad input to the scans is refused by name, before anything is computed."""

from __future__ import annotations

import pytest
import torch

from hf_longctx.mamba import selective_scan, ssd, ssd_step
from scan_cases import arguments

OF = arguments(2, 10)
STEP = {k: t if k == "A" else t[:, 0] for k, t in OF.items()} | {"state": torch.zeros(2, 4, 8, 16)}
ONE = {
    "x": torch.randn(2, 10, 6),
    "dt": torch.rand(2, 10, 6),
    "A": -torch.rand(6, 5),
    "B": torch.randn(2, 10, 2, 5),
    "C": torch.randn(2, 10, 2, 5),
}


@pytest.mark.parametrize(
    ("kind", "words", "change"),
    [
        (TypeError, ["x", "list", "tensor"], {"x": [1.0]}),
        (TypeError, ["B", "NoneType"], {"B": None}),
        (TypeError, ["dt", "int64", "float32"], {"dt": OF["dt"].long()}),
        (ValueError, ["x", "(2, 10, 32)", "head size"], {"x": OF["x"].flatten(2)}),
        (ValueError, ["x", "(2, 10, 4, 0)", "only batch and length"], {"x": OF["x"][..., :0]}),
        (ValueError, ["dt", "(2, 10, 1)", "(2, 10, 4)"], {"dt": OF["dt"][..., :1]}),
        (ValueError, ["A", "(4, 1)", "(4,)"], {"A": OF["A"][:, None]}),
        (ValueError, ["B", "(2, 10, 16)", "groups"], {"B": OF["B"][:, :, 0]}),
        (ValueError, ["B", "(2, 9, 2, 16)", "(2, 10, 2, 16)"], {"B": OF["B"][:, 1:]}),
        (ValueError, ["C", "(2, 10, 1, 16)", "shape of B"], {"C": OF["C"][:, :, :1]}),
        (ValueError, ["B", "float64", "float32"], {"B": OF["B"].double()}),
        (ValueError, ["3 groups", "4 heads"], {k: torch.randn(2, 10, 3, 16) for k in "BC"}),
        (ValueError, ["D", "(3,)", "(4, 8)", "(4,)"], {"D": torch.ones(3)}),
        (ValueError, ["initial_state", "(2, 4, 16, 8)", "(2, 4, 8, 16)"], {"initial_state": torch.ones(2, 4, 16, 8)}),
        (TypeError, ["chunk", "2.5"], {"chunk": 2.5}),
        (TypeError, ["chunk", "True"], {"chunk": True}),
        (ValueError, ["chunk", "0", "at least 1"], {"chunk": 0}),
        (TypeError, ["segments", "float32"], {"segments": torch.ones(2, 10)}),
        (ValueError, ["segments", "(2, 9)", "(2, 10)"], {"segments": torch.ones(2, 9, dtype=torch.int64)}),
        (ValueError, ["segments", "meta", "cpu"], {"segments": torch.ones(2, 10, dtype=torch.int64, device="meta")}),
        (ValueError, ["C", "meta", "cpu"], {"C": OF["C"].to("meta")}),
        (ValueError, ["dt", "-0.5", "softplus"], {"dt": OF["dt"].clone().fill_(-0.5)}),
        (ValueError, ["A", "0.25", "A_log"], {"A": torch.tensor([-1.0, -1.0, 0.25, 0.0])}),
        (ValueError, ["backend", "'mamba-ssm'", "'mamba_ssm'", "torch"], {"backend": "mamba-ssm"}),
        (ValueError, ["mamba_ssm", "cpu", "CUDA", "auto"], {"backend": "mamba_ssm"}),
    ],
)
def test_ssd(kind, words, change):
    refused(ssd, OF | change, kind, words)


@pytest.mark.parametrize(
    ("kind", "words", "change"),
    [
        (TypeError, ["state", "bfloat16", "float32"], {"state": STEP["state"].bfloat16()}),
        (ValueError, ["state", "(2, 4, 128)", "head size"], {"state": STEP["state"].flatten(2)}),
        (ValueError, ["state", "contiguous"], {"state": torch.zeros(2, 4, 16, 8).transpose(2, 3)}),
        (ValueError, ["x", "(2, 10, 4, 8)", "(2, 4, 8)"], {"x": OF["x"]}),
        (ValueError, ["dt", "(2, 4, 1)", "(2, 4)"], {"dt": STEP["dt"][..., None]}),
        (ValueError, ["A", "(3,)"], {"A": -torch.ones(3)}),
        (TypeError, ["A", "list"], {"A": [-1.0] * 4}),
        (TypeError, ["dt", "int64"], {"dt": STEP["dt"].long()}),
        (ValueError, ["x", "meta"], {"x": STEP["x"].to("meta")}),
        (ValueError, ["B", "(2, 2, 15)", "(2, 2, 16)"], {"B": STEP["B"][..., 1:]}),
        (ValueError, ["3 groups", "4 heads"], {k: torch.randn(2, 3, 16) for k in "BC"}),
        (ValueError, ["C", "(2, 1, 16)"], {"C": STEP["C"][:, :1]}),
        (ValueError, ["D", "(5,)"], {"D": torch.ones(5)}),
        (TypeError, ["D", "float"], {"D": 1.0}),
        (ValueError, ["gradients", "no_grad", "ssd"], {"x": STEP["x"].clone().requires_grad_()}),
    ],
)
@pytest.mark.parametrize("grad", [True, False])
def test_step(kind, words, change, grad):
    """Without gradients a quick look lets through what fits; what does not is named all the same."""
    if "gradients" in words and not grad:  # nothing is wrong then
        with torch.no_grad():
            assert ssd_step(**STEP | change | {"state": STEP["state"].clone()}).isfinite().all()
        return
    before = STEP["state"].clone()
    with torch.set_grad_enabled(grad):
        refused(ssd_step, STEP | change, kind, words)
    assert torch.equal(STEP["state"], before)


@pytest.mark.parametrize(
    ("kind", "words", "change"),
    [
        (TypeError, ["A", "list"], {"A": [-1.0]}),
        (ValueError, ["x", "(2, 10)", "channels"], {"x": ONE["x"][..., 0]}),
        (ValueError, ["A", "(6,)", "(6, 5)"], {"A": ONE["A"][:, 0]}),
        (ValueError, ["4 groups", "6 channels"], {k: torch.randn(2, 10, 4, 5) for k in "BC"}),
        (ValueError, ["D", "(6, 5)", "(6,)"], {"D": ONE["A"]}),
        (ValueError, ["initial_state", "(2, 6)", "(2, 6, 5)"], {"initial_state": torch.ones(2, 6)}),
        (ValueError, ["dt", "softplus"], {"dt": -ONE["dt"]}),
    ],
)
def test_selective_scan(kind, words, change):
    refused(selective_scan, ONE | change, kind, words)


def refused(call, of, kind, words):
    with pytest.raises(kind) as caught:
        call(**of)
    for word in words:
        assert word in str(caught.value)


def test_nan_is_passed_on():
    """A model that has diverged shows it in its numbers, as everywhere else."""
    assert ssd(**(OF | {"A": torch.full((4,), float("nan"))})).isnan().all()
