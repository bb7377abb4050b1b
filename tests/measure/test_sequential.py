"""Sequential tests: their error stays below its level however often one looks."""

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_longctx.measure.sequential import decide, interval, log_capital

LEVELS = {"pass_level": 0.05, "fail_level": 0.05}
scores = st.lists(st.floats(0, 1) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=40)


@given(scores, st.floats(0.05, 0.95))
def test_the_capital_is_the_mean_over_bettors(given_scores, threshold):
    for above in (True, False):
        found = log_capital(given_scores, threshold, above=above)
        for n in range(1, len(given_scores) + 1):
            capital = 0.0
            for bet in range(1, 17):
                product = 1.0
                for x in given_scores[:n]:
                    gain = x / threshold if above else (1 - x) / (1 - threshold)
                    product *= 1 - bet / 16 + bet / 16 * gain
                capital += product / 16
            expected = math.log(capital) if capital else -math.inf
            assert found[n - 1] == pytest.approx(expected, abs=1e-6) or capital < 1e-12


def test_a_fair_game_neither_wins_nor_loses():
    """Over all outcomes of 8 trials the expected capital is exactly 1 at the threshold: the martingale itself."""
    for threshold, above in itertools.product((0.3, 0.856), (True, False)):
        total = 0.0
        for outcome in itertools.product((0.0, 1.0), repeat=8):
            hits = int(sum(outcome))
            chance = threshold**hits * (1 - threshold) ** (8 - hits)
            total += chance * math.exp(log_capital(outcome, threshold, above=above)[-1])
        assert total == pytest.approx(1.0)


@pytest.mark.parametrize("draw", ["hits", "shares of four"])
def test_wrong_verdicts_at_the_line_are_rarer_than_their_level(draw, capsys):
    rng = np.random.default_rng(0)
    runs, trials, line = 400, 120, 0.856
    calls = []
    for _ in range(runs):
        size = 1 if draw == "hits" else 4
        calls.append(decide((rng.binomial(size, line, trials) / size).tolist(), line, **LEVELS))
    wrong = {call: calls.count(call) / runs for call in ("pass", "fail")}
    with capsys.disabled():
        print(f"\nat the line, {draw}, looked at {trials} times: {wrong}", end=" ")
    slack = 3 * math.sqrt(0.05 * 0.95 / runs)
    assert all(rate <= 0.05 + slack for rate in wrong.values())
    assert sum(wrong.values()) > 0  # it is no test that never decides


def test_it_decides_soon_where_it_is_clear_and_keeps_its_word():
    assert decide([1.0] * 28, 0.856, **LEVELS) == "pass"
    assert decide([1.0] * 20, 0.856, **LEVELS) == "open"
    assert decide([0.0] * 3, 0.856, **LEVELS) == "fail"
    assert decide([1.0] * 28 + [0.0] * 200, 0.856, **LEVELS) == "pass"  # it had stopped by then
    assert decide([], 0.5, **LEVELS) == "open"


@given(scores)
def test_an_interval_holds_the_mean_of_many_alike_and_narrows(given_scores):
    low, high = interval(given_scores)
    again_low, again_high = interval(given_scores * 3)
    assert 0 <= low <= high <= 1
    assert again_low >= low - 1e-9
    assert again_high <= high + 1e-9


def test_intervals_hold_the_truth_at_their_rate():
    rng = random.Random(1)
    held = 0
    for _ in range(150):
        chance = rng.random()
        low, high = interval([float(rng.random() < chance) for _ in range(40)])
        held += low <= chance <= high
    assert held / 150 >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / 150)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: log_capital([0.5], 1.0, above=True), "threshold=1.0"),
        (lambda: log_capital([1.5], 0.5, above=True), "from 0 to 1"),
        (lambda: interval([1.0], 1.0), "confidence=1.0"),
    ],
)
def test_what_is_out_of_range_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
