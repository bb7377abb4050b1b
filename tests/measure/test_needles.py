"""Needles: a bank large enough, values that cannot be guessed, and a score that is neither kind nor harsh."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_longctx.measure.needles import (
    VALUE_KINDS,
    draw_needles,
    draw_value,
    first_line,
    is_hit,
    make_needle,
    relations,
)


@pytest.mark.parametrize("kind", VALUE_KINDS)
def test_every_relation_is_its_own(kind):
    assert len(set(relations(kind))) == len(relations(kind)) >= 64


def test_every_relation_has_its_own_words():
    contents = [
        frozenset(relation.split()) - {"the", "of", "for", "in", "at", "number", "code"} for relation in relations()
    ]
    assert len(set(contents)) == len(contents) >= 64


def test_an_answer_ends_at_its_first_full_stop_so_no_needle_holds_another():
    for needle in draw_needles(kind="digits", seed="x"):
        assert needle.sentence.count(".") == 1
        assert needle.sentence == f"{needle.prefix} {needle.value}."
        assert needle.question.endswith("?")


@pytest.mark.parametrize("kind", VALUE_KINDS)
def test_needles_are_a_function_of_the_seed(kind):
    first, again, other = (draw_needles(kind=kind, seed=seed) for seed in ("a", "a", "b"))
    assert first == again
    assert {n.value for n in first} != {n.value for n in other}
    assert len({n.value for n in first}) == len({n.relation for n in first}) == len(relations())


def test_an_unknown_kind_of_value_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="values='roman'.*digits, words, uuid"):
        draw_value("roman", random.Random(0))


@given(
    st.sampled_from(VALUE_KINDS),
    st.integers(0, 10**6),
    st.sampled_from(["{}", " {}.", '"{}"', "It is {}!", "({})\n7"]),
)
def test_the_value_is_found_in_what_surrounds_it(kind, seed, frame):
    needle = make_needle(0, draw_value(kind, random.Random(seed)), kind)
    assert is_hit(frame.format(needle.value), needle)
    assert is_hit(frame.format(needle.value.upper()), needle)


@given(st.sampled_from(VALUE_KINDS), st.integers(0, 10**6), st.integers(0, 10**6))
def test_another_value_is_no_hit(kind, seed, other):
    needle = make_needle(0, draw_value(kind, random.Random(seed)), kind)
    said = draw_value(kind, random.Random(other))
    assert is_hit(said, needle) == (said == needle.value)


@given(st.integers(1_000_000, 9_999_999), st.integers(0, 9))
def test_digits_are_bounded(value, digit):
    needle = make_needle(0, str(value), "digits")
    assert not is_hit(f"{value}{digit}", needle)
    assert not is_hit(f"{digit}{value}", needle)
    assert is_hit(f"{value:,}", needle)


def test_only_the_first_line_counts():
    needle = make_needle(0, "amber falcon", "words")
    assert is_hit("\n\n Amber-Falcon, I think\nor not", needle)
    assert not is_hit("I think\namber falcon", needle)
    assert not is_hit("amber falconry", needle)
    assert first_line(" \n ") == ""
