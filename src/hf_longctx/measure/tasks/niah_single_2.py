"""RULER's `niah_single_2`.

>>> from hf_longctx.measure.tasks import find
>>> from hf_longctx.measure.word_tokenizer import WordTokenizer
>>> prompt = find("niah_single_2")(WordTokenizer(), length=300, seed=0)
>>> print(prompt.question, "->", *prompt.expected)
What is the secret number of jagged-hammer? -> 4161617
"""

from __future__ import annotations

from .base import task
from .draft import Draft, Material
from .niah import BUDGET, SOURCE, needles


@task(rule="all", budget=BUDGET, source=SOURCE, lone=True)
def niah_single_2(draft: Draft) -> Material:
    """One number in natural text."""
    return needles(draft)
