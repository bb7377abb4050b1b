"""RULER's frequent words (`fwe`): coded words whose frequencies follow a zeta distribution.

>>> from hf_longctx.measure.tasks import find
>>> from hf_longctx.measure.word_tokenizer import WordTokenizer
>>> prompt = find("frequent_words")(WordTokenizer(), length=512, seed=0)
>>> print(prompt.question, "->", *prompt.expected)
Which three coded words come most often in the text, the dots aside? -> hqxdwi pnbbuh ufwrcs
"""

from __future__ import annotations

import itertools
import math
import random

from .base import task
from .draft import Context, Draft, Material, TooShort
from .draws import letters
from .fill import grow

_ALPHA = 2.0
_ZETA = math.pi**2 / 6
"""Riemann's zeta of 2."""
_DOTS = "..."
_ASKED = 3
_LEAST = 60
"""Words from which on ranks 2 to 4 differ in how often they occur."""


@task(rule="all", budget=50, source="RULER (arXiv 2404.06654), frequent words extraction: alpha 2.0", control=False)
def frequent_words(draft: Draft) -> Material:
    """The three most frequent coded words; the word of rank r comes in proportion to r^-2, and rank 1 is dots."""
    vocabulary = draft.length // 50
    if vocabulary <= _ASKED:
        raise TooShort(f"frequent_words needs at least {50 * (_ASKED + 1)} tokens, {draft.length} are given")
    ranked = [_DOTS, *itertools.islice(letters(draft.rng, 6), vocabulary - 1)]

    def text(size: int) -> str:
        entries: list[str] = []
        for rank, word in enumerate(ranked, start=1):
            entries += [word] * int(size * rank**-_ALPHA / _ZETA)
        random.Random(f"{draft.seed}/order/{size}").shuffle(entries)
        return " ".join(entries)

    def fill(room: int) -> Context:
        return grow(draft.codec, text, _LEAST, room)

    return Material(
        instruction="Below is a coded text. Count how often each coded word comes. The dots mean nothing.",
        question="Which three coded words come most often in the text, the dots aside?",
        prefix="The three coded words that come most often are:",
        expected=tuple(ranked[1 : 1 + _ASKED]),
        facts=(),
        fill=fill,
    )
