"""The gate: what is shown passes, what is undecided does not and says so, what is no limit is a mistake."""

import pytest

from hf_longctx.measure import gate, stats
from hf_longctx.measure.store import write_json
from hf_longctx.measure.suite import summaries


def needle(recalls, n=30, control="miss"):
    """A summary of a needle run: variant to length to hits of n."""
    rows = [
        {"variant": name, "length": length, "depth": 0.5, "kind": "needle", "outcome": "hit" if i < hits else "miss"}
        for name, lengths in recalls.items()
        for length, hits in lengths.items()
        for i in range(n)
    ]
    rows += [{"variant": name, "length": 1, "kind": "control", "outcome": control} for name in recalls for _ in "abc"]
    variants = stats.summarise(rows, claimed=dict.fromkeys(recalls))
    return {"settings": {}, "model": "m", "variants": variants}


def climbed(low, verdicts):
    found = {"length": low, "low": low, "high": None, "verdicts": verdicts}
    control = {"trusted": True, "note": ""}
    entry = {"effective": {"absolute": found, "own": found}, "cells": [{"score": 1.0}], "control": control}
    return {"settings": {"kind": "tasks"}, "model": "m", "variants": {"stock": entry}}


def missed(tmp_path, summary, *limits):
    write_json(tmp_path / "summary.json", summary)
    return gate.misses(tmp_path, gate.parse(limits))


def test_what_is_shown_passes_and_what_fails_says_by_how_much(tmp_path):
    summary = needle({"stock": {1024: 30, 2048: 30, 4096: 2}, "yarn2": {1024: 30, 2048: 30, 4096: 30}})
    assert missed(tmp_path, summary, "effective=2k", "recall=0.6") == []
    (said,) = missed(tmp_path, summary, "effective=4k")
    assert said == (
        "stock: effective length (absolute) is shown to work to 2K, 4K was asked for, 2048 more; it fails at 4K"
    )
    assert missed(tmp_path, summary, "yarn2:effective=4k", "yarn2:effective-own=4k") == []
    (said,) = missed(tmp_path, summary, "recall=0.8")
    assert said.startswith("stock: recall is 0.689 (62 of 90, 95% interval 0.5")
    assert said.endswith("0.8 was asked for, 0.111 more")


def test_a_limit_of_its_own_takes_the_place_of_the_general_one(tmp_path):
    summary = needle({"stock": {1024: 30, 2048: 2}, "yarn2": {1024: 30, 2048: 30}})
    assert missed(tmp_path, summary, "effective=2k", "stock:effective=1k") == []
    assert len(missed(tmp_path, summary, "effective=2k", "yarn2:effective=1k")) == 1


def test_undecided_is_no_pass(tmp_path):
    few = needle({"stock": {1024: 5}}, n=5)
    (said,) = missed(tmp_path, few, "effective=1k")
    assert "not shown to work at any length" in said
    assert said.endswith("undecided at 1K (18 more straight hits would pass), which is no pass: give more trials")
    (said,) = missed(tmp_path, few, "recall-low=0.8")
    assert "undecided, which is no pass" in said
    assert missed(tmp_path, few, "recall=1") == []
    (said,) = missed(tmp_path, needle({"stock": {1024: 30}}), "effective=8k")
    assert "undecided, since no length from 8K on has passed" in said
    (said,) = missed(tmp_path, needle({"stock": {1024: 0}}, n=0) | {}, "effective=1k") or ("",)


def test_a_longer_length_that_passes_again_proves_nothing_shorter(tmp_path):
    broken = needle({"stock": {1024: 30, 2048: 2, 4096: 30}})
    assert "it fails at 2K" in missed(tmp_path, broken, "effective=4k")[0]


def test_a_score_that_cannot_be_trusted_does_not_pass(tmp_path):
    (said,) = missed(tmp_path, needle({"stock": {1024: 30}}, control="hit"), "recall=0.5")
    assert said.endswith("its score cannot be trusted")


def test_what_no_control_stands_beside_does_not_pass(tmp_path):
    summary = needle({"stock": {1024: 30}}, control="invalid")
    (said,) = missed(tmp_path, summary, "effective=1k")
    assert said.startswith("stock: no control was scored, so nothing tells what its score is worth")
    assert missed(tmp_path, needle({"stock": {1024: 30}}), "effective=1k") == []


def test_a_search_for_the_effective_length_decides_where_a_suite_has_one(tmp_path):
    parts = {
        "recall": needle({"stock": {1024: 5}}, n=5),
        "climb": climbed(1024, {"1024": "pass", "2048": "undecided"}),
    }
    listed = [{"name": name, "kind": "x", "model": "m", "folder": name} for name in (*parts, "later")]
    write_json(tmp_path / "suite.json", {"schema": 1, "name": "s", "parts": listed})
    for name, summary in parts.items():
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "summary.json", summary)
    assert [part["name"] for part in summaries(tmp_path)] == ["recall", "climb"]
    assert gate.misses(tmp_path, gate.parse(["effective=1k", "recall=0.9"])) == []
    (said,) = gate.misses(tmp_path, gate.parse(["effective=2k"]))
    assert said.startswith("climb, stock: ")
    assert "undecided at 2K" in said


@pytest.mark.parametrize(
    ("limit", "sentence"),
    [
        ("effective", "write effective=8k"),
        (":effective=8k", "write effective=8k"),
        ("effective=8q", "8q"),
        ("efective=8k", "did you mean 'effective'"),
        ("recall=80", "'80' is no share"),
        ("recall=0", "'0' is no share"),
        ("recall=x", "'x' is no share"),
    ],
)
def test_what_is_no_limit_is_a_mistake(limit, sentence):
    with pytest.raises(ValueError, match=sentence):
        gate.parse([limit])


def test_limits_for_what_a_run_does_not_have_are_mistakes(tmp_path):
    with pytest.raises(ValueError, match="given twice"):
        gate.parse(["recall=0.5", "recall=0.6"])
    with pytest.raises(ValueError, match="variant 'stok', the run has stock. Did you mean 'stock'"):
        missed(tmp_path, needle({"stock": {1024: 5}}), "stok:recall=0.5")
    with pytest.raises(ValueError, match="does not measure recall"):
        missed(tmp_path, climbed(1024, {"1024": "pass"}), "recall=0.5")
    with pytest.raises(ValueError, match="no such folder"):
        gate.misses(tmp_path / "nowhere", gate.parse(["recall=0.5"]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no summary\.json yet"):
        gate.misses(tmp_path / "empty", gate.parse(["recall=0.5"]))
    with pytest.raises(ValueError, match="only a part of the kind needle measures"):
        gate.check(gate.parse(["recall=0.5"]), ["stock"], ["cost", "effective"])
