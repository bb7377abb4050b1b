"""Questions over documents of a user's file, the right ones hidden among the others."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hf_longctx.measure.prose import LOOKS, THINGS, sentences

from .draft import Context, Draft, Material, Unfit
from .draws import NAMES
from .fill import stack

BUDGET = 32


@dataclass(frozen=True)
class Question:
    """A question, its accepted answers, and the numbers of the documents that hold them."""

    text: str
    answers: tuple[str, ...]
    documents: tuple[int, ...]


@dataclass(frozen=True)
class Corpus:
    """Distinct documents and the questions about them."""

    documents: tuple[str, ...]
    questions: tuple[Question, ...]


Reader = Callable[[Any], tuple[list[str], list[tuple[str, list[str], list[str]]]]]
"""Parsed JSON to documents, and to questions with answers and the documents that hold them."""


def about_documents(draft: Draft, read: Reader, form: str) -> Material:
    """One question about a document among others of the file.

    Args:
        draft: what to draw from.
        read: the form's reader.
        form: what the file must look like, for messages.
    """
    if draft.files is None:
        raise ValueError(f"files=None: give {form}")
    corpus = _load(str(draft.files), read, form)
    question = corpus.questions[draft.rng.randrange(len(corpus.questions))]
    depths = draft.depths(len(question.documents))
    order = [index for index in range(len(corpus.documents)) if index not in question.documents]
    random.Random(f"{draft.seed}/others").shuffle(order)
    gold = list(zip((corpus.documents[index] for index in question.documents), depths))
    asked, expected = question.text, question.answers
    if draft.wrong_key:
        stranger = _stranger(corpus, question, draft.rng)
        asked, expected = stranger.text, tuple(one for one in expected if one not in stranger.answers)
        order = [index for index in order if index not in stranger.documents]

    def fill(room: int) -> Context:
        return stack(
            draft.codec,
            (corpus.documents[index] for index in order),
            gold if draft.planted else [],
            room,
            title=lambda number: f"Document {number}:\n",
            between="\n\n",
        )

    return Material(
        instruction="Answer the question from the documents below, with the answer alone.",
        question=f"Question: {asked}",
        prefix="Answer:",
        expected=expected,
        facts=tuple(text for text, _ in gold),
        fill=fill,
    )


def _stranger(corpus: Corpus, question: Question, rng: random.Random) -> Question:
    """Another question of the file, over other documents and with another answer: a key that is not in the text."""
    for one in rng.sample(corpus.questions, len(corpus.questions)):
        if not set(one.documents) & set(question.documents) and set(question.answers) - set(one.answers):
            return one
    raise Unfit("the file has no other question over other documents to ask in place of the right one")


_PLAIN = 300


def sample_trades() -> tuple[list[tuple[str, str, str]], list[str]]:
    """Text for samples, of our own writing: people with what they mend, and documents that tell of nobody.

    Returns:
        (name, document, thing) of each person, and the other documents.

    >>> people, others = sample_trades()
    >>> people[0][1].split(".")[0], people[0][2]
    ('Aldous mends every wooden basket of the village', 'basket')
    """
    prose = sentences("sample")
    things = zip(itertools.cycle(LOOKS), itertools.cycle(THINGS))
    people = [
        (name, f"{name} mends every {look} {thing} of the village. {next(prose)}", thing)
        for name, (look, thing) in zip(NAMES, things)
    ]
    return people, [f"{next(prose)} {next(prose)}" for _ in range(_PLAIN)]


@lru_cache(maxsize=4)
def _load(path: str, read: Reader, form: str) -> Corpus:
    try:
        documents, questions = read(json.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise ValueError(f"files={path!r} cannot be read ({error.strerror}): give {form}") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"files={path!r} is not what this task reads: give {form}") from error
    distinct = list(dict.fromkeys(documents))
    places = {text: index for index, text in enumerate(distinct)}
    found = tuple(
        Question(text, tuple(dict.fromkeys(answers)), tuple(dict.fromkeys(places[one] for one in holding)))
        for text, answers, holding in questions
        if answers and holding
    )
    if not found:
        raise ValueError(f"files={path!r} holds no question with an answer: give {form}")
    return Corpus(tuple(distinct), found)
