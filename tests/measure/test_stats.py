"""Intervals, verdicts and effective lengths: what a handful of probes can and cannot show."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_longctx.measure import stats
from hf_longctx.measure.finding import verdict_line


@st.composite
def counts(draw, least=0, most=400):
    n = draw(st.integers(least, most))
    return draw(st.integers(0, n)), n


thresholds = st.floats(0.01, 0.99)


@given(counts(), st.floats(0.5, 0.999))
def test_interval_holds_the_share_and_stays_inside_0_and_1(count, confidence):
    hits, n = count
    low, high = stats.wilson(hits, n, confidence)
    assert 0.0 <= low <= high <= 1.0
    if n:
        assert low <= hits / n <= high


@given(counts(least=1))
def test_bounds_are_the_roots_of_the_score_test(count):
    """Wilson's bounds are by definition the shares p with |hits/n - p| = z * sqrt(p (1 - p) / n)."""
    hits, n = count
    z = 1.959963984540054
    for bound in stats.wilson(hits, n):
        if 0.0 < bound < 1.0:
            assert abs(hits / n - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), rel=1e-9, abs=1e-12)


@given(counts())
def test_hits_and_misses_mirror_each_other(count):
    hits, n = count
    low, high = stats.wilson(hits, n)
    assert stats.wilson(n - hits, n) == pytest.approx((1 - high, 1 - low))


@given(counts(least=1, most=60))
def test_more_probes_at_the_same_share_narrow_the_interval(count):
    hits, n = count
    low, high = stats.wilson(hits, n)
    narrower_low, narrower_high = stats.wilson(3 * hits, 3 * n)
    assert narrower_high - narrower_low < high - low


def test_known_intervals():
    assert stats.wilson(15, 15) == pytest.approx((0.7961, 1.0), abs=1e-4)
    assert stats.wilson(22, 22)[0] < 0.856 <= stats.wilson(23, 23)[0]
    assert stats.wilson(428, 500) == pytest.approx((0.823, 0.884), abs=1e-3)
    assert stats.wilson(0, 0) == (0.0, 1.0)


@given(counts(), thresholds)
def test_a_verdict_needs_the_whole_interval_on_one_side(count, threshold):
    low, high = stats.wilson(*count)
    call = stats.verdict(*count, threshold)
    assert call != "pass" or low >= threshold
    assert call != "fail" or high < threshold


@given(st.integers(1, 60), st.floats(0.01, 0.99))
def test_a_verdict_is_wrong_as_seldom_as_it_says(n, threshold):
    """Exact, at the threshold itself, where a pass is all but wrong and a fail is; Wilson alone fails 0 of 1."""
    chance = {"pass": 0.0, "fail": 0.0, "undecided": 0.0}
    for hits in range(n + 1):
        chance[stats.verdict(hits, n, threshold)] += binomial(hits, n, threshold)
    assert chance["pass"] <= 0.05 + 1e-9
    assert chance["fail"] <= 0.05 + 1e-9


def binomial(hits, n, share):
    return math.comb(n, hits) * share**hits * (1 - share) ** (n - hits)


def test_few_probes_decide_nothing_and_many_do():
    calls = {count: stats.verdict(*count, 0.856) for count in [(0, 1), (0, 2), (1, 2), (22, 22), (23, 23), (3, 5)]}
    assert calls == {
        (0, 1): "undecided", (0, 2): "fail", (1, 2): "undecided",
        (22, 22): "undecided", (23, 23): "pass", (3, 5): "undecided",
    }  # fmt: skip
    assert [stats.verdict(hits, 4000, 0.856) for hits in (3300, 3424, 3500)] == ["fail", "undecided", "pass"]


@given(counts(most=60), st.floats(0.05, 0.95))
def test_needed_is_the_smallest_number_that_passes(count, threshold):
    hits, n = count
    extra = stats.needed(hits, n, threshold)
    assert stats.verdict(hits + extra, n + extra, threshold) == "pass"
    if extra:
        assert stats.verdict(hits + extra - 1, n + extra - 1, threshold) != "pass"


@st.composite
def ladders(draw):
    lengths = draw(st.lists(st.sampled_from([2**i for i in range(9, 18)]), unique=True, max_size=6))
    return {length: draw(counts(most=80)) for length in lengths}


@given(ladders())
def test_effective_length_is_the_end_of_the_unbroken_climb(ladder):
    for name, found in stats.effective(ladder).items():
        verdicts = [found["verdicts"][str(length)] for length in sorted(ladder)]
        unbroken = (
            len(verdicts) if all(v == "pass" for v in verdicts) else [v == "pass" for v in verdicts].index(False)
        )
        assert found["length"] == (sorted(ladder)[unbroken - 1] if unbroken else None), name
        assert all(found["verdicts"][length] == "undecided" for length in found["needed"])


def test_a_longer_length_that_passes_after_a_failure_does_not_count():
    found = stats.effective({1024: (40, 40), 2048: (5, 40), 4096: (40, 40)})["absolute"]
    assert found["verdicts"] == {"1024": "pass", "2048": "fail", "4096": "pass"}
    assert found["length"] == 1024


def test_own_rule_measures_against_the_models_own_short_score():
    weak_but_steady = {1024: (300, 500), 8192: (295, 500), 16384: (100, 500)}
    found = stats.effective(weak_but_steady)
    assert found["absolute"]["length"] is None
    assert found["own"]["threshold"] == pytest.approx(0.51)
    assert found["own"]["length"] == 8192


def test_a_model_that_finds_nothing_has_no_score_to_keep():
    found = stats.effective({1024: (0, 5), 2048: (0, 5)})["own"]
    assert set(found["verdicts"].values()) == {"fail"}
    assert found["length"] is None


def test_without_a_scored_short_probe_the_own_rule_stays_open():
    found = stats.effective({1024: (0, 0), 2048: (5, 5)})["own"]
    assert found["threshold"] is None
    assert set(found["verdicts"].values()) == {"undecided"}
    assert found["needed"] == {}


@pytest.mark.parametrize("bad", [-0.1, 1.0, 85.6, float("nan")])
def test_a_threshold_that_no_probes_could_reach_is_refused(bad):
    with pytest.raises(ValueError, match="threshold"):
        stats.verdict(5, 5, bad)
    with pytest.raises(ValueError, match="threshold"):
        stats.Rule(bad)


@pytest.mark.parametrize(("hits", "n"), [(-1, 5), (6, 5), (0, -1)])
def test_impossible_counts_are_refused(hits, n):
    with pytest.raises(ValueError, match="hits"):
        stats.wilson(hits, n)


def row(outcome, length=1024, depth=0.5, kind="needle", variant="stock", trial=0):
    return {"variant": variant, "trial": trial, "length": length, "depth": depth, "kind": kind, "outcome": outcome}


outcomes = st.sampled_from(["hit", "miss", "invalid"])
some_rows = st.lists(
    st.builds(
        row,
        outcomes,
        length=st.sampled_from([512, 1024, 4096]),
        depth=st.sampled_from([0.0, 0.5, 1.0]),
        kind=st.sampled_from(["needle", "control", "control-wrong-key"]),
        variant=st.sampled_from(["stock", "yarn2"]),
    ),
    max_size=40,
)


@given(some_rows, st.randoms())
def test_every_row_is_counted_once_and_their_order_does_not_matter(rows, random):
    found = stats.summarise(rows, claimed={"stock": 8192, "yarn2": 16384})
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert stats.summarise(shuffled, claimed={"stock": 8192, "yarn2": 16384}) == found
    for name, entry in found.items():
        own = [r for r in rows if r["variant"] == name]
        needles = [r["outcome"] for r in own if r["kind"] == "needle"]
        for part in (entry["cells"], entry["lengths"]):
            assert sum(c["hits"] for c in part) == needles.count("hit")
            assert sum(c["n"] for c in part) == len(needles) - needles.count("invalid")
            assert all((c["recall"] is None) == (c["n"] == 0) for c in part)
        for name, kind in (("no-needle", "control"), ("wrong-key", "control-wrong-key")):
            asked = sum(r["kind"] == kind and r["outcome"] != "invalid" for r in own)
            assert entry["control"][name]["n"] == asked
        assert entry["invalid"] == sum(r["outcome"] == "invalid" for r in own)


def test_an_invalid_probe_is_never_a_miss():
    entry = stats.summarise([row("hit"), row("invalid"), row("invalid", depth=1.0)], claimed={"stock": 8192})["stock"]
    middle, end = entry["cells"]
    assert (middle["n"], middle["recall"], middle["invalid"]) == (1, 1.0, 1)
    assert (end["n"], end["recall"], end["invalid"]) == (0, None, 1)
    assert (end["low"], end["high"]) == (0.0, 1.0)


def test_a_length_that_could_not_be_asked_says_why_and_wants_no_more():
    rows = [row("hit") for _ in range(5)] + [row("invalid", length=8192) | {"reason": "too long"}] * 5
    found = stats.summarise(rows, claimed={"stock": 8192})["stock"]["effective"]["absolute"]
    assert found["needed"] == {"1024": 18}
    assert found["unsettled"] == {"8192": "could not be asked: too long"}
    only = stats.summarise(rows[5:], claimed={"stock": 8192})["stock"]
    said = "stock claims 8K; nothing is decided yet: 8K could not be asked: too long."
    assert verdict_line("stock", only | {"effective": {"absolute": only["effective"]["absolute"] | ENDS}}) == said


ENDS = {"low": None, "high": None, "confidence": None}


def test_planned_variants_are_listed_first_and_without_rows():
    found = stats.summarise([row("hit", variant="found")], claimed={"stock": 8192, "yarn2": 16384})
    assert list(found) == ["stock", "yarn2", "found"]
    assert found["yarn2"]["cells"] == []
    assert found["yarn2"]["effective"]["absolute"]["length"] is None
    assert found["found"]["claimed"] is None


def test_an_unknown_outcome_is_refused():
    with pytest.raises(ValueError, match="'maybe'"):
        stats.summarise([row("maybe")], claimed={})


@given(counts(most=60))
def test_control_is_believed_where_few_enough_are_hits(count):
    """Distrusted where the rate is surely above the limit; undecided where it only seems so."""
    hits, n = count
    rows = [row("hit", kind="control")] * hits + [row("miss", kind="control")] * (n - hits) + [row("hit")] * 9
    found = stats.grade(rows)
    assert (found["no-needle"]["hits"], found["no-needle"]["n"]) == count
    believed = n > 0 and hits / n <= 0.05
    assert found["trusted"] is (True if believed else False if stats.wilson(hits, n)[0] > 0.05 else None)
    assert ("cannot be trusted" in found["note"]) is (found["trusted"] is False)
