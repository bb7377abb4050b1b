"""Paired tests of two variants, against their definitions."""

import random
from itertools import product

import pytest

from hf_longctx.measure.paired import bootstrap_difference, mcnemar


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (5, 1), (2, 7), (4, 4)])
def test_mcnemar_counts_all_ways_to_split_the_differing_prompts(first, second):
    n = first + second
    far = abs(first - second)
    as_far = sum(abs(n - 2 * sum(side)) >= far for side in product((0, 1), repeat=n))
    assert mcnemar(first, second) == pytest.approx(as_far / 2**n)


def test_mcnemar_rejects_at_its_level():
    rng = random.Random(0)
    splits = [sum(rng.random() < 0.5 for _ in range(20)) for _ in range(1000)]
    assert sum(mcnemar(k, 20 - k) <= 0.05 for k in splits) / 1000 <= 0.05 + 0.021


def test_bootstrap_interval_holds_the_mean_most_of_the_time():
    rng = random.Random(0)
    held = 0
    for seed in range(200):
        given = [0.2 + rng.uniform(-0.5, 0.5) for _ in range(30)]
        mean, low, high = bootstrap_difference(given, draws=300, seed=seed)
        assert low <= mean <= high
        held += low <= 0.2 <= high
    assert 0.87 <= held / 200 <= 0.995


def test_too_little_is_said():
    assert bootstrap_difference([0.5]) == (0.5, -1.0, 1.0)
    with pytest.raises(ValueError, match="differences is empty"):
        bootstrap_difference([])
    with pytest.raises(ValueError, match="at least 0"):
        mcnemar(-1, 2)
