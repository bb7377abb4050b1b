"""RULER's `niah_single_1`.

>>> from hf_longctx.measure.tasks import find
>>> from hf_longctx.measure.word_tokenizer import WordTokenizer
>>> prompt = find("niah_single_1")(WordTokenizer(), length=300, seed=0)
>>> print(prompt.question, "->", *prompt.expected)
What is the secret number of olive-valley? -> 7857846
"""

from __future__ import annotations

from .base import task
from .draft import Draft, Material
from .niah import BUDGET, SOURCE, needles


@task(rule="all", budget=BUDGET, source=SOURCE, lone=True)
def niah_single_1(draft: Draft) -> Material:
    """One number in repeated filler: tests the addressing of a position, little more."""
    return needles(draft, haystack="filler")
