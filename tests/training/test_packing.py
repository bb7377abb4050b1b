"""Packing: exact lengths, nothing lost, and no leak of attention or position from one document to the next."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hf_longctx as lc
from families import FAMILIES, TRAINED, build, tokens
from hf_longctx.training.packing import IGNORED, Edges, pack

EDGES = [Edges(), Edges(bos=(1,)), Edges(eos=(2,)), Edges(bos=(1,), eos=(2,), filler=2)]
documents = st.lists(st.lists(st.integers(10, 60), max_size=40), max_size=12)


def pieces(row):
    """The pieces of a row as (first, last) indices, by restarting positions."""
    starts = [i for i, p in enumerate(row["position_ids"]) if p == 0]
    return list(zip(starts, [*starts[1:], len(row["position_ids"])]))


@given(documents, st.integers(4, 33), st.sampled_from(EDGES))
def test_exact_lengths_and_restarting_positions(docs, length, edges):
    for row in pack(docs, length, edges):
        assert {len(values) for values in row.values()} == {length}
        for start, stop in pieces(row):
            assert row["position_ids"][start:stop] == list(range(stop - start))
            assert row["labels"][start] == IGNORED
            assert tuple(row["input_ids"][start : start + len(edges.bos)]) == edges.bos
        for token, label in zip(row["input_ids"], row["labels"]):
            assert label in (IGNORED, token)


@given(documents, st.integers(4, 33), st.sampled_from(EDGES[1:]))
def test_every_token_comes_once_and_in_order(docs, length, edges):
    """Edges taken away, rows give the documents' tokens from the beginning; only an unfilled last row is missing."""
    special = {*edges.bos, *edges.eos, edges.filler}
    found = [token for row in pack(docs, length, edges) for token in row["input_ids"] if token not in special]
    expected = [token for document in docs for token in document]
    assert found == expected[: len(found)]
    assert len(expected) - len(found) < length


def test_a_long_document_is_cut_into_pieces_with_both_ends():
    edges = Edges(bos=(1,), eos=(2,))
    rows = list(pack([list(range(10, 40))], 12, edges))
    for row in rows:
        assert row["input_ids"][0] == 1
        assert row["input_ids"][-1] == 2
    assert [t for row in rows for t in row["input_ids"][1:-1]] == list(range(10, 40))


def test_a_length_that_holds_no_piece_is_refused():
    with pytest.raises(ValueError, match="at least 3 tokens"):
        next(pack([[1, 2, 3]], 2, EDGES[3]))


def packed_row(length=48):
    rng = random.Random(0)
    docs = [[rng.randrange(3, 61) for _ in range(size)] for size in (14, 9, 30)]
    row = next(pack(docs, length, Edges(bos=(1,))))
    return {name: torch.tensor([values]) for name, values in row.items()}, pieces(row)


#: Stock gpt-oss hands no position ids to its masks, so that its packed documents see one another.
PACKED = [(f, a) for f in FAMILIES for a in (None, "full", "window:8+global:2") if (f, a) != ("gpt_oss", None)]


@pytest.mark.parametrize(("family", "attention"), PACKED)
def test_no_leak_between_documents(family, attention):
    """Logits of each document are those that it has alone, and changing one document changes no other.

    Without the restarting positions both fail, so this test can.
    """
    model = build(family)
    if attention is not None:
        lc.patch(model, attention=attention, rope="yarn:2")
    batch, spans = packed_row()
    ids, positions = batch["input_ids"], batch["position_ids"]
    assert len(spans) == 3
    with torch.no_grad():
        packed = model(ids, position_ids=positions, use_cache=False).logits
        for start, stop in spans:
            alone = model(ids[:, start:stop], use_cache=False).logits
            torch.testing.assert_close(packed[:, start:stop], alone, atol=2e-5, rtol=2e-4)
        leaking = model(ids, use_cache=False).logits  # isolation removed
        start, stop = spans[1]
        alone = model(ids[:, start:stop], use_cache=False).logits
        assert (leaking[:, start:stop] - alone).abs().max() > 1e-2
        first, last = spans[0]
        other = ids.clone()
        other[:, first:last] = tokens(1, last - first, seed=9)
        changed = model(other, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(changed[:, last:], packed[:, last:], atol=1e-6, rtol=1e-6)


def test_the_loss_of_a_packed_row_is_that_of_its_documents():
    """No token is asked for by the document before it, and each label is shifted once."""
    model = build("llama")
    batch, spans = packed_row(TRAINED - 16)
    with torch.no_grad():
        loss = model(**batch, use_cache=False).loss
        total, count = 0.0, 0
        for start, stop in spans:
            ids = batch["input_ids"][:, start:stop]
            total += model(ids, labels=ids, use_cache=False).loss * (stop - start - 1)
            count += stop - start - 1
    torch.testing.assert_close(loss, total / count)
