"""RULER's `niah_single_3`.

>>> from hf_longctx.measure.tasks import find
>>> from hf_longctx.measure.word_tokenizer import WordTokenizer
>>> prompt = find("niah_single_3")(WordTokenizer(), length=300, seed=0)
>>> print(prompt.question, "->", *prompt.expected)
What is the secret code of jagged-ribbon? -> f3e54bc3-a35b-4890-8655-54ef14bcd99c
"""

from __future__ import annotations

from .base import task
from .draft import Draft, Material
from .niah import BUDGET, SOURCE, needles


@task(rule="all", budget=BUDGET, source=SOURCE, lone=True)
def niah_single_3(draft: Draft) -> Material:
    """One UUID in natural text."""
    return needles(draft, value="uuid")
