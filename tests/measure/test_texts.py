"""Every run says how much of its text repeats and how much its needles give away."""

import pytest

from hf_longctx.measure import report, run_needle
from hf_longctx.measure.evaluate import run_tasks
from hf_longctx.measure.overlap import literal_overlap


def test_a_needle_run(model, tokenizer, make_grid, monkeypatch):
    monkeypatch.setattr(report, "attempt", lambda out: None)
    found = run_needle(model, tokenizer, lengths=[200], depths=2, progress=False)["haystack"]
    pairs = [
        (one.needle.sentence, one.needle.question) for one in make_grid(tokenizer, lengths=(200,), depths=2).probes(0)
    ]
    assert found["overlap"] == pytest.approx(sum(literal_overlap(*pair) for pair in pairs[:2]) / 2, abs=1e-4)
    assert 0.9 < found["unique_share"] <= 1
    assert 0.9 < found["overlap"] <= 1


def test_a_run_of_tasks(model, tokenizer):
    rows = []
    summary = run_tasks(
        model, tokenizer, tasks=["passkey", "common_words"], lengths=[1450], trials=2, controls=0, on_row=rows.append
    )
    passkeys = [row for row in rows if row["task"] == "passkey"]
    assert summary["text"]["passkey"]["unique_share"] == round(sum(row["unique_share"] for row in passkeys) / 2, 4)
    assert summary["text"]["passkey"]["unique_share"] < 0.7
    assert summary["text"]["common_words"]["overlap"] is None
