"""From nothing, in small: a model trained on 256 tokens fails at 1,024, and a few steps under a scaling mend it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[1] / "evals" / "bench"


@pytest.fixture(scope="module")
def proof():
    """The script as a module."""
    sys.path.insert(0, str(BENCH))
    try:
        spec = importlib.util.spec_from_file_location("extend_proof", BENCH / "extend_proof.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(BENCH))


def test_the_task_repeats_and_asks_only_what_can_be_known(proof):
    ids, labels = proof.induction(256, 8, torch.Generator().manual_seed(0), shortest=64)
    for row, wanted in zip(ids, labels):
        period = int((wanted >= 0).nonzero()[0])
        assert 64 <= period <= 128
        assert torch.equal(row[period:], row[:-period])
        assert torch.equal(wanted[period:], row[period:])
        assert (wanted[:period] == -100).all()


@pytest.mark.slow
def test_an_extension_from_nothing(proof):
    rows = list(proof.prove(0, steps=1500, after=[0, 20]))
    told = {(row["method"], row["steps"]): row["told_right"] for row in rows}
    assert rows[0]["base_accuracy"] > 0.9
    assert told["unscaled", 0] < 0.5
    assert told["yarn", 20] > told["unscaled", 0] + 0.2
