"""RULER's `niah_multikey_1`.

>>> from hf_longctx.measure.tasks import find
>>> from hf_longctx.measure.word_tokenizer import WordTokenizer
>>> prompt = find("niah_multikey_1")(WordTokenizer(), length=400, seed=0)
>>> print(prompt.question, "->", *prompt.expected)
What is the secret number of amber-spider? -> 1295935
"""

from __future__ import annotations

from .base import task
from .draft import Draft, Material
from .niah import BUDGET, SOURCE, needles


@task(rule="all", budget=BUDGET, source=SOURCE)
def niah_multikey_1(draft: Draft) -> Material:
    """One number asked for, three others of other keys beside it, in natural text."""
    return needles(draft, keys_=4)
