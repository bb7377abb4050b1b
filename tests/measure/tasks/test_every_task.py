"""What every task promises, looped over the registry: a new file is tested without an edit here."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fresh
from hf_longctx.measure.haystack import unique_share
from hf_longctx.measure.prompts import Codec
from hf_longctx.measure.tasks import REGISTRY, TooShort, find, names
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
        asked, control = make(name, seed=seed), make(name, seed=seed, control=True)
        assert (control.question, control.expected) == (asked.question, asked.expected)
        expected = [one for one in control.expected if len(one) > 2]  # two letters stand in any text
        said = Codec(tokenizer).decode(control.ids)
        assert all(one not in said for one in expected)
        assert (control.needles, control.overlap, len(control.ids)) == ((), None, len(asked.ids))


@pytest.mark.parametrize("name", sorted(set(names()) - set(WITH_CONTROL)))
def test_where_all_of_the_text_is_the_answer_a_control_is_refused(name, make):
    with pytest.raises(ValueError, match="has no control"):
        make(name, control=True)


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
def test_a_file_without_enough_documents_is_refused(name, make):
    with pytest.raises(ValueError, match="choose a shorter length"):
        make(name, 200_000)
