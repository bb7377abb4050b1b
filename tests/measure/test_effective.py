"""Effective lengths: the climb, the fit, and by simulation the coverage of the interval."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_longctx.measure.effective import Climb, judge
from hf_longctx.measure.effective_curve import curve_length
from hf_longctx.measure.effective_summary import summarise
from hf_longctx.measure.falling_curve import crossing, falling_fit

LADDER = (1024, 2048, 4096, 8192)
GOOD, BAD = [1.0] * 48, [0.0] * 12


@pytest.fixture(scope="module")
def simulation():
    path = Path(__file__).parents[2] / "evals" / "bench" / "interval_coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_simulation", path)
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run(climb, rule, score):
    scores = {}
    while (found := judge(scores, climb, rule)).ask is not None:
        length, trial = found.ask
        assert len(scores.setdefault(length, [])) == trial
        scores[length].append(score(length, trial))
    return found, scores


@pytest.mark.parametrize("rule", ["absolute", "own"])
@pytest.mark.parametrize(("limit", "low", "high"), [(5000, 4096, 5120), (1500, 1280, 1536), (10**9, 8192, None)])
def test_a_step_is_climbed_to_and_bisected(rule, limit, low, high):
    found, scores = run(Climb(LADDER), rule, lambda length, trial: float(length <= limit))
    assert (found.low, found.high) == (low, high)
    assert max(map(len, scores.values())) <= 48
    clear = [length for length in scores if length > limit]
    assert all(len(scores[length]) < 10 for length in clear) or rule == "own"


def test_a_model_that_is_bad_from_the_start():
    for rule in ("absolute", "own"):
        found, scores = run(Climb(LADDER), rule, lambda length, trial: 0.0)
        assert (found.low, found.high) == (None, 1024)
        assert sum(map(len, scores.values())) < 30


def test_the_rules_differ_where_the_own_score_is_low():
    climb = Climb(LADDER, trials=200)
    assert run(climb, "absolute", lambda length, trial: 0.5)[0].low is None
    assert run(climb, "own", lambda length, trial: 0.5)[0].low == 8192


def test_after_an_undecided_length_nothing_longer_is_believed():
    score = {1024: [1.0], 2048: [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0], 4096: [1.0], 8192: [0.0]}
    found, _ = run(Climb(LADDER), "absolute", lambda length, trial: score[length][trial % len(score[length])])
    assert found.verdicts[2048] == "undecided"
    assert found.verdicts[4096] == "pass"
    assert (found.low, found.high) == (1024, 8192)


def test_what_could_not_be_asked_is_undecided_never_a_fail():
    found, scores = run(Climb(LADDER), "absolute", lambda length, trial: 1.0 if length < 4096 else None)
    assert (found.low, found.high) == (2048, None)
    assert found.verdicts == {1024: "pass", 2048: "pass", 4096: "undecided", 8192: "undecided"}
    assert len(scores[4096]) == 1


def test_the_own_rule_asks_the_base_for_the_same_seeds():
    climb = Climb(LADDER, trials=300)
    _, scores = run(climb, "own", lambda length, trial: float((trial * 7919 + length) % 100 < 95))
    assert all(len(scores[length]) <= len(scores[1024]) for length in scores)


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 9)), min_size=1, max_size=7))
def test_the_fit_falls_and_nothing_falling_is_nearer(points):
    means, weights = [mean for mean, _ in points], [weight for _, weight in points]
    fit = np.array(falling_fit(means, weights))
    assert all(a >= b - 1e-12 for a, b in zip(fit, fit[1:]))
    # The condition for a projection on a cone: the residual is orthogonal to the fit and at most so to every step.
    residual = (np.array(means) - fit) * np.array(weights)
    assert abs(residual @ fit) < 1e-9
    assert all(residual[:count].sum() <= 1e-9 for count in range(1, len(fit)))
    assert abs(residual.sum()) < 1e-9


def test_crossing_by_hand():
    assert crossing([1024, 2048, 8192], [1.0, 0.9, 0.5], 0.7) == pytest.approx(4096)
    assert crossing([1024, 2048], [1.0, 0.856], 0.856) == math.inf


def test_the_bootstrap_draws_seeds_not_samples():
    """Two kinds of seeds, good everywhere and bad everywhere: all lengths of a resample move together."""
    scores = {length: [1.0, 0.0] * 10 for length in LADDER}
    _, low, high = curve_length(scores, Climb(LADDER), "absolute")
    assert (low, high) == (0.0, 0.0)
    estimate, low, high = curve_length(scores, Climb(LADDER), "own")
    assert (estimate, low, high) == (math.inf, math.inf, math.inf)  # drawn one by one, some length would fall short


def test_a_summary_without_the_shortest_length_knows_one_rule():
    """Too short for the task: nothing is said against the own score, and the rest stands."""
    found = summarise({1024: [None], 2048: GOOD, 4096: BAD}, Climb(LADDER), 8192)
    assert found["own"]["curve"] == {"length": 0.0, "low": 0.0, "high": None}
    assert found["own"]["length"] is None
    assert 2048 < found["absolute"]["curve"]["length"] < 4096


def test_a_summary_says_it_all():
    found = summarise({1024: GOOD, 2048: GOOD, 4096: BAD}, Climb((1024, 2048, 4096), bisections=0), 4096)
    absolute = found["absolute"]
    assert (absolute["length"], absolute["low"], absolute["high"]) == (2048, 2048, 4096)
    assert absolute["share_of_claimed"] == 0.5
    assert absolute["verdicts"] == {"1024": "pass", "2048": "pass", "4096": "fail"}
    assert 2048 < absolute["curve"]["length"] < 4096
    assert summarise({}, Climb((1024,)), None)["own"]["length"] is None


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"ladder": ()}, "ladder="),
        ({"ladder": (2048, 1024)}, "ascending"),
        ({"ladder": (1024,), "trials": 0}, "trials=0"),
        ({"ladder": (1024,), "bisections": -1}, "bisections=-1"),
        ({"ladder": (1024,), "confidence": 95}, "confidence=95"),
    ],
)
def test_a_climb_that_cannot_be_is_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        Climb(**fields)


@pytest.mark.parametrize("rule", ["absolute", "own"])
def test_the_interval_holds_the_truth_at_its_rate(simulation, capsys, rule):
    runs, climb = 10, Climb(simulation.LADDER, trials=40, confidence=0.9)
    curves = ("step at 6K", "falls fast after 8K", "just above the line", "just below the line")
    held = {}
    for name in curves:
        curve = simulation.CURVES[name]
        truth = curve.truth(rule)
        found = [run(climb, rule, lambda n, t: curve.score(n, t, seed))[0] for seed in range(runs)]  # noqa: B023
        inside = [(one.low or 0) <= truth and (one.high is None or truth < one.high) for one in found]
        held[name] = sum(inside) / runs
    with capsys.disabled():
        print(f"\ncoverage of the 90% interval, rule {rule}: {held}", end=" ")
    assert min(held.values()) >= 0.8  # of 10; that it is no wider than it must be, the exact chances tell


def test_a_width_is_in_rungs_and_open_ends_count_as_one(simulation):
    first, last = simulation.LADDER[0], simulation.LADDER[-1]
    spans = {(4096, 8192): 1, (4096, 5120): math.log2(1.25), (last, math.inf): 1, (0, first): 1, (0, math.inf): 7}
    assert {span: simulation.width(*span) for span in spans} == pytest.approx(spans)


def chances(call, good, bad, mean, trials):
    """The exact chance that independent scores, `good` or `bad`, of that mean are ever called `pass` or `fail`.

    A verdict depends on how many of either there were. Whether it falls at n trials is asked of a sequence that comes
    to its counts on the safest way, as near to the line as can be before.
    """
    share = (mean - bad) / (good - bad)
    alive, found, top, bottom = np.zeros(trials + 2), {"pass": 0.0, "fail": 0.0}, 0, -1
    alive[0] = 1.0
    for n in range(1, trials + 1):
        alive[1:] = alive[1:] * (1 - share) + alive[:-1] * share
        alive[0] *= 1 - share

        def said(hits, late):
            have = [(i * hits if late else -(-i * hits // n) * n) // n for i in range(n + 1)]  # noqa: B023
            return call([good if after > before else bad for before, after in zip(have, have[1:])])

        while top <= n and said(top, True) != "pass":
            top += 1
        while bottom + 1 < top and said(bottom + 1, False) == "fail":
            bottom += 1
        found["pass"] += alive[top:].sum()
        found["fail"] += alive[: bottom + 1].sum()
        alive[top:] = alive[: bottom + 1] = 0
    return found


@pytest.mark.parametrize(("end", "bad"), [("pass", 0.0), ("fail", 0.8)])
def test_either_end_is_wrong_as_often_as_it_may_be_and_hardly_less(end, bad):
    """Exact, at the line itself, where it is wrong most often; half as much again would break the promise."""
    climb = Climb((1024, 2048, 4096, 8192, 16384), trials=200, bisections=0, confidence=0.8)
    good_rungs = dict.fromkeys(climb.ladder[:-1], [1.0] * 60)

    def call(scores):  # of the last rung, all before it being good
        return judge({**good_rungs, 16384: scores}, climb, "absolute").verdicts[16384]

    wrong = chances(call, 1.0, bad, 0.856, 190)[end]
    # A wrong pass can come at the first bad rung alone; a wrong fail at any rung, and each of them is tested alike.
    rungs = 1 if end == "pass" else len(climb.ladder)
    allowed = (1 - climb.confidence) / 2
    assert allowed / 2 < rungs * wrong <= allowed


@pytest.mark.parametrize("bisections", [0, 2, 5])
@pytest.mark.parametrize("rungs", [1, 4])
def test_the_error_is_shared_out_whole(rungs, bisections):
    climb = Climb(tuple(1024 * (1 + rung) for rung in range(rungs)), bisections=bisections, confidence=0.9)
    assert (1 + bisections) * climb.pass_level == pytest.approx(0.05)
    assert (rungs + bisections + 1) * climb.fail_level == pytest.approx(0.05)


def test_the_simulation_would_notice_a_careless_interval(simulation):
    """Looking at plain Wilson bounds after every trial, as if their number were fixed, is wrong too often."""
    from hf_longctx.measure.stats import verdict

    curve, wrong = simulation.CURVES["just above the line"], 0
    for seed in range(60):
        hits = 0
        for trial in range(150):
            hits += curve.score(1024, trial, seed)
            if verdict(int(hits), trial + 1, 0.856) == "fail":
                wrong += 1
                break
    assert wrong / 60 > 0.1


def test_every_rung_is_accounted_for():
    """Passed, failed, or with the reason why neither, whatever the search was stopped by."""
    climb = Climb(LADDER, trials=48, bisections=0)
    mixed = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0] * 7
    cases = {
        "no time": ({}, "the run stopped before its first trial", "not asked: the run stopped at 1K"),
        "some time": (
            {1024: [1.0] * 5}, "the run stopped after 5 of at most 48 trials", "not asked: the run stopped at 1K",
        ),
        "used up": ({1024: mixed, 2048: BAD}, "not decided by its 49 trials, the most that were allowed",
                    "not asked: 2K fails, and scores are taken to fall with length"),
    }  # fmt: skip
    for scores, first, last in cases.values():
        found = summarise(scores, climb, None)["absolute"]
        assert found["unsettled"]["1024"] == first
        assert found["unsettled"]["8192"] == last
        settled = {length for length, call in found["verdicts"].items() if call in ("pass", "fail")}
        assert settled | set(found["unsettled"]) == {str(length) for length in LADDER}
        assert not settled & set(found["unsettled"])


def test_what_does_not_fit_says_why_and_is_not_asked_for_again():
    scores = {1024: [None], 2048: GOOD, 4096: BAD}
    found = summarise(scores, Climb(LADDER, trials=96), 8192, unfit={1024: "multihop: 900 tokens are free"})
    for rule in ("absolute", "own"):
        assert found[rule]["unsettled"]["1024"] == "could not be asked: multihop: 900 tokens are free"
        assert "1024" not in found[rule]["needed"]
    assert found["own"]["unsettled"]["2048"] == "not comparable: 1K could not be asked"
    assert judge(scores, Climb(LADDER, trials=96), "own").ask is None  # neither is asked to no end
