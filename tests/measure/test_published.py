"""The shipped table: printed figures are kept as they are, and recomputed by each suite's own rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_longctx.measure.machines import machine, machines, read_bytes
from hf_longctx.measure.published import effective, label, published

# Rows of RULER's own table that break RULER's own rule.
BROKEN = {
    "Qwen3-14B": "64K",
    "Qwen2.5-7B-Instruct-1M": "64K",
    "Qwen3-8B": "32K",
    "Qwen3-4B": "32K",
    "EXAONE-4.0-1.2B": "16K",
}


def test_printed_and_recomputed_differ_where_they_are_known_to():
    assert {r["model"]: r["effective_text"] for r in published() if r["differs"]} == BROKEN


def test_every_row_has_what_a_reader_needs():
    suites = {}
    for row in published():
        suites[row["suite"]] = suites.get(row["suite"], 0) + 1
        assert row["scores"]
        assert all(0 <= score <= 100 for score in row["scores"].values())
        assert all(row["source"][key] for key in ("title", "url", "paper", "date"))
        assert row["source"]["status"] in ("read", "second-hand", "computed", "from memory")
        assert row["claimed"] is None or row["claimed"] % 1024 == 0
        assert (row["pattern"] is None and row["rope"] is None) or row["architecture_status"]
    assert suites == {"ruler": 49, "nolima": 18, "babilong": 5}


@pytest.mark.parametrize(
    "name",
    ["Gemini 1.5 Pro", "Claude 3.5", "GPT-4-1106", "Mistral 7B", "Jamba-1.5", "Llama3.1", "Qwen3-8B", "Gemma 3 27B"],
)
def test_the_models_that_people_ask_for_have_pattern_and_rope_or_a_word_why_not(name):
    rows = [
        row for row in published() if label(row).lower().replace("-", " ").startswith(name.lower().replace("-", " "))
    ]
    assert rows
    assert all((row["pattern"] or row["rope"]) and row["architecture_status"] for row in rows)


@pytest.mark.parametrize(
    ("name", "suite", "claimed", "text"),
    [
        ("Gemini 1.5 Pro", "ruler", 1 << 20, ">=128K"),
        ("Claude 3.5 Sonnet", "nolima", 200 * 1024, "4K"),
        ("GPT-4-1106", "ruler", 128 * 1024, "64K"),
        ("Gemma 3 27B", "nolima", 128 * 1024, "<1K"),
        ("Jamba-v0.1", "babilong", 256 * 1024, "<1K"),
        ("Llama3.1", "nolima", 128 * 1024, "2K"),
    ],
)
def test_some_rows(name, suite, claimed, text):
    row = next(r for r in published(name) if r["suite"] == suite)
    assert (row["claimed"], row["effective_text"]) == (claimed, text)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="no published model"):
        published("nobody")


@given(st.lists(st.floats(0, 100), min_size=1, max_size=6), st.floats(0, 100))
def test_effective_is_the_longest_unbroken_run(scores, line):
    found = effective({1024 << i: score for i, score in enumerate(scores)}, line)
    clears = [round(score, 1) >= round(line, 1) for score in scores]
    run = clears.index(False) if False in clears else len(clears)
    assert found.length == (1024 << (run - 1) if run else None)
    assert found.open == (run == len(scores))


def test_machines_and_sizes():
    assert all(machine(key) == value for key, value in machines().items())
    assert read_bytes("1.5 GiB") == 3 << 29
    assert machine("48g").memory == 48 * 10**9
    for wrong in ("h10", "", "0", "5 parsecs", "-1g"):
        with pytest.raises(ValueError, match="memory is"):
            machine(wrong)
    with pytest.raises(ValueError, match="did you mean 'h100'"):
        machine("h10")
