"""The stream of training sequences: documents, tokenised and packed, pass after pass, the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import IterableDataset

from .corpus import Corpus
from .packing import Edges, pack
from .pose import skip_positions


class PackedDataset(IterableDataset):
    """Training sequences without end; when the documents are used up, they come again in another order.

    Every iteration gives the same sequences in the same order, which is what lets a killed run go on.

    Args:
        corpus: where documents come from.
        tokenizer: of the model.
        length: tokens of a sequence.
        window: the window to be learned; None for positions that count from 0, else positions skip within it.
        seed: any integer.
        chunks: pieces between skips, for position skipping.
    """

    def __init__(
        self, corpus: Corpus, tokenizer: Any, length: int, *, window: int | None = None, seed: int = 0, chunks: int = 2
    ) -> None:
        self._corpus, self._tokenizer, self._length = corpus, tokenizer, length
        self._window, self._seed, self._chunks = window, seed, chunks
        self._edges = Edges.of(tokenizer)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        rng = random.Random(f"pose/{self._seed}")

        def skipping(length: int) -> list[int]:
            return skip_positions(length, self._window or length, rng, chunks=self._chunks)

        positions = range if self._window is None else skipping
        for row in pack(self._documents(), self._length, self._edges, positions=positions):
            yield {name: torch.tensor(values, dtype=torch.int64) for name, values in row.items()}

    def _documents(self) -> Iterator[list[int]]:
        turn = 0
        while True:
            tokens = 0
            for text in self._corpus.train(self._seed * 1_000_003 + turn):
                ids = encode(self._tokenizer, text)
                tokens += len(ids)
                yield ids
            if not tokens:
                raise ValueError(
                    f"data={self._corpus.name!r} gives no tokens to train on: every document is empty, or all of it "
                    "is held out; give more text"
                )
            turn += 1


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids without special tokens, and without the warning that text is long."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def held_out_ids(corpus: Corpus, tokenizer: Any, length: int) -> list[int]:
    """The beginning of the held-out text, its documents joined, BOS first: at most `length` token ids."""
    edges = Edges.of(tokenizer)
    ids = [*edges.bos]
    for text in corpus.held_out():
        ids += encode(tokenizer, text)
        if len(ids) >= length:
            break
    return ids[:length]
