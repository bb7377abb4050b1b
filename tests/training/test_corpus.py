"""Where training text comes from: order, what is held out, and what is refused."""

from __future__ import annotations

import itertools
import json

import pytest

from hf_longctx.training.corpus import open_corpus
from hf_longctx.training.dataset import PackedDataset, held_out_ids


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.txt").write_text("text zero")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "b.md").write_text("text one")
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": f"line {i}", "id": i}) + "\n" for i in range(40)))
    (tmp_path / "ignored.bin").write_bytes(b"\0")
    return tmp_path


def test_a_folder_of_text_and_lines(folder):
    corpus = open_corpus(folder)
    train, held = list(corpus.train(0)), list(corpus.held_out())
    assert sorted(train + held) == sorted(["text zero", "text one", *(f"line {i}" for i in range(40))])
    assert len(held) == 2
    assert train == list(corpus.train(0)) != list(corpus.train(1))
    assert sorted(train) == sorted(corpus.train(1))


def test_a_single_document_gives_its_end(tmp_path):
    file = tmp_path / "one.txt"
    file.write_text("x" * 900 + "y" * 100)
    corpus = open_corpus(file)
    assert list(corpus.train(3)) == ["x" * 900]
    assert list(corpus.held_out()) == ["y" * 100]


def test_king_james_is_books():
    pytest.importorskip("importlib.metadata")
    corpus = open_corpus("kjv")
    assert len(list(corpus.train(0))) + len(list(corpus.held_out())) == 66
    assert "66 books" in corpus.label


def test_prose_never_ends_and_holds_out():
    corpus = open_corpus("prose")
    assert len(set(itertools.islice(corpus.train(0), 3))) == 3
    assert next(corpus.held_out()) not in set(itertools.islice(corpus.train(0), 3))


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no text"):
        open_corpus(tmp_path)
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "fine"}\n{"body": "no"}\n{"text": 3}\nnot json\n')
    corpus = open_corpus(file)
    with pytest.raises(ValueError, match="line [234]"):
        list(corpus.train(0)) + list(corpus.held_out())
    with pytest.raises(ValueError, match="has no text in field 'body', only text"):
        list(open_corpus(file, field="body").train(0)) + list(open_corpus(file, field="body").held_out())


def test_a_data_set_by_name(folder):
    """`datasets` loads a local folder of JSON lines by its module's name as it does one of the hub."""
    datasets = pytest.importorskip("datasets")
    stream = datasets.load_dataset("json", data_files=str(folder / "c.jsonl"), split="train", streaming=True)
    import hf_longctx.training.corpus as module

    original = datasets.load_dataset
    datasets.load_dataset = lambda *args, **kwargs: stream
    try:
        corpus = module.open_corpus("some/name")
    finally:
        datasets.load_dataset = original
    train, held = list(corpus.train(0)), list(corpus.held_out())
    assert held == ["line 19", "line 39"]
    assert sorted(train + held) == sorted(f"line {i}" for i in range(40))
    assert list(corpus.train(0)) == train


def test_sequences_are_the_same_every_time(folder, byte_tokenizer):
    def rows(**given):
        data = PackedDataset(open_corpus(folder), byte_tokenizer, 32, **given)
        return [{k: v.tolist() for k, v in row.items()} for row in itertools.islice(data, 40)]  # several passes

    assert rows() == rows()
    assert rows(window=200) == rows(window=200) != rows(window=200, seed=1)
    assert max(max(row["position_ids"]) for row in rows(window=200)) > 100
    assert all(row["input_ids"] == other["input_ids"] for row, other in zip(rows(), rows(window=200)))


def test_held_out_text_is_joined(folder, byte_tokenizer):
    ids = held_out_ids(open_corpus(folder), byte_tokenizer, 12)
    assert len(ids) <= 12
    assert ids[0] == byte_tokenizer.bos_token_id
