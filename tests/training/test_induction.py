"""A Llama trained from nothing on 256 tokens fails beyond them; scaled RoPE carries it to 1024. One seed."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

FAR = slice(3, None)
"""The buckets of distances beyond twice the trained window."""


def load():
    path = Path(__file__).parents[2] / "evals" / "induction.py"
    spec = importlib.util.spec_from_file_location("induction_script", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


induction = load()


@given(length=st.integers(16, 200).map(lambda half: 2 * half), seed=st.integers(0, 99))
def test_every_question_has_its_answer_at_its_distance(length, seed):
    rows = induction.draw(2, length, torch.Generator().manual_seed(seed))
    each = torch.arange(2)[:, None]
    fact = rows.asked - rows.distances
    assert (fact >= 0).all()
    assert (fact + 1 < rows.asked.min()).all()
    assert torch.equal(rows.ids[each, fact], rows.ids[each, rows.asked])
    assert torch.equal(rows.ids[each, fact + 1], rows.answers)
    for ids, key in zip(rows.ids, rows.ids[each, rows.asked], strict=True):
        assert all((ids == one).sum() == 2 for one in key)


def seeds(**curves):
    """Results of one seed, from the hits of 100 at both lengths by steps."""
    at = {
        m: {str(s): {w: {"hits": [h], "n": [100]} for w in ("256", "1024")} for s, h in c.items()}
        for m, c in curves.items()
    }
    return [{"methods": {name.replace("4", ":4"): run for name, run in at.items()}}]


def test_steps_are_counted_and_the_order_is_said_as_measured():
    claimed = seeds(linear4={0: 20, 3: 50, 10: 99}, ntk4={0: 50, 3: 90, 10: 100}, yarn4={0: 90, 3: 99, 10: 99})
    runs = claimed[0]["methods"]
    assert [induction.steps_needed(runs[m], 0.99) for m in ("linear:4", "ntk:4", "yarn:4")] == [10, 10, 3]
    assert induction.steps_needed(runs["linear:4"], 1.0) == float("inf")
    said = induction.verdict(claimed)
    assert "in 1 of 1 seeds at 256" in said
    assert "99%: fewer than both others in 1 of 1 seeds" in said
    other = induction.verdict(seeds(linear4={0: 99}, ntk4={0: 50}, yarn4={0: 99}))
    assert "in 0 of 1 seeds at 256" in other
    assert "99%: fewer than both others in 0 of 1 seeds, as few as the better in 1" in other


@pytest.fixture(scope="module")
def trained():
    """The model of one seed, trained as long as it takes to be sure of its window."""
    model, _ = induction.train_from_nothing(0, last=60)
    return model


@pytest.fixture(scope="module")
def extended(trained):
    """Results by method: untrained, and after the same three steps."""
    return {method: induction.extend(trained, method, (0, 3), rows=8, seed=0) for method in induction.METHODS}


def test_the_trained_window_is_solved_and_nothing_beyond(extended):
    stock = extended["stock"]["0"]
    assert induction.recall(stock["256"]) > 0.95
    assert induction.recall(stock["1024"], FAR) < 0.3


def test_yarn_works_untrained_and_stays_far_above_stock_after_the_same_steps(extended):
    for steps in ("0", "3"):
        assert induction.recall(extended["yarn:4"][steps]["1024"]) > 0.9
        assert induction.recall(extended["stock"][steps]["1024"], FAR) < 0.5


@pytest.mark.parametrize("method", ["linear:4", "ntk:4", "yarn:4"])
def test_every_scaling_recalls_what_stock_cannot_before_and_after_the_same_steps(extended, method):
    for steps in ("0", "3"):
        far, stock = (induction.recall(extended[one][steps]["1024"], FAR) for one in (method, "stock"))
        assert far > 0.5 > stock
    assert extended[method]["3"]["1024"]["loss"] < extended[method]["0"]["1024"]["loss"]


def test_the_order_is_reported(extended):
    said = induction.verdict([{"methods": extended}])
    assert "of 1 seeds at 256" in said
    assert "99%: fewer than both others in" in said


def test_untrained_yarn_costs_less_within_the_trained_window_than_linear(extended):
    assert extended["linear:4"]["0"]["256"]["loss"] > extended["yarn:4"]["0"]["256"]["loss"]
