"""RULER's `niah_multikey_2`.

>>> from hf_longctx.measure.tasks import find
>>> from hf_longctx.measure.word_tokenizer import WordTokenizer
>>> prompt = find("niah_multikey_2")(WordTokenizer(), length=400, seed=0)
>>> print(prompt.question, "->", *prompt.expected)
What is the secret number of stormy-pebble? -> 6029820
"""

from __future__ import annotations

from .base import task
from .draft import Draft, Material
from .niah import BUDGET, SOURCE, needles


@task(rule="all", budget=BUDGET, source=SOURCE)
def niah_multikey_2(draft: Draft) -> Material:
    """One number asked for in a text that consists of such needles."""
    return needles(draft, needle_haystack=True)
