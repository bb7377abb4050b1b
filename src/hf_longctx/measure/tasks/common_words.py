"""RULER's common words (`cwe`): a numbered list in which ten words come far more often than the rest.

>>> from hf_longctx.measure.tasks import find
>>> from hf_longctx.measure.word_tokenizer import WordTokenizer
>>> prompt = find("common_words")(WordTokenizer(), length=1024, seed=0)
>>> print(prompt.question, "->", *prompt.expected[:2])
Which 10 words come most often in the list? -> yellowsummit plainwalnut
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from .base import task
from .draft import Context, Draft, Material
from .draws import COMPOUNDS, words
from .fill import grow

_COMMON = 10
_LONG = 4096
_TIMES = {True: (30, 3), False: (6, 1)}
"""How often a common word and another one occur, from 4K on and below."""
_EXAMPLE = {True: (40, 10, 3), False: (20, 3, 1)}
"""The same for the example, with its number of different words first (`get_example` of RULER's own generator)."""
_QUESTION = f"Which {_COMMON} words come most often in the list?"
_PREFIX = f"The {_COMMON} words that come most often are:"


@task(rule="all", budget=120, source="RULER (arXiv 2404.06654), common words extraction", control=False)
def common_words(draft: Draft) -> Material:
    """The ten words of a list that occur 30 times among others that occur 3 times (6 and 1 below 4K)."""
    long = draft.length >= _LONG
    drawn = words(draft.rng)
    size, often, seldom = _EXAMPLE[long]
    example, common = (list(itertools.islice(drawn, count)) for count in (size, _COMMON))
    others: list[str] = []

    def text(count: int) -> str:
        others.extend(itertools.islice(drawn, max(0, count - len(others))))
        return _list(common, others[:count], _TIMES[long], f"{draft.seed}/order/{count}")

    def fill(room: int) -> Context:
        return grow(draft.codec, text, 1, room, most=COMPOUNDS - size - _COMMON)

    shown = _list(example[:_COMMON], example[_COMMON:], (often, seldom), f"{draft.seed}/example")
    answer = " ".join(f"{number}. {word}" for number, word in enumerate(example[:_COMMON], start=1))
    return Material(
        instruction=f"Below is a numbered list of words. Keep count of how often each comes.\n\n{shown}\n\n"
        f"{_QUESTION}\n{_PREFIX} {answer}\n\nNow another list.",
        question=_QUESTION,
        prefix=_PREFIX,
        expected=tuple(common),
        facts=(),
        fill=fill,
    )


def _list(common: Sequence[str], others: Sequence[str], times: tuple[int, int], seed: str) -> str:
    entries = [*itertools.chain(*([word] * times[0] for word in common), *([word] * times[1] for word in others))]
    random.Random(seed).shuffle(entries)
    return " ".join(f"{number}. {word}" for number, word in enumerate(entries, start=1))
