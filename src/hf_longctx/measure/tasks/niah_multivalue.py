"""RULER's `niah_multivalue`.

>>> from hf_longctx.measure.tasks import find
>>> from hf_longctx.measure.word_tokenizer import WordTokenizer
>>> prompt = find("niah_multivalue")(WordTokenizer(), length=400, seed=0)
>>> print(prompt.question, "->", *prompt.expected)
What are the secret numbers of amber-glacier, all of them? -> 6196934 4479240 3963401 4206797
"""

from __future__ import annotations

from .base import task
from .draft import Draft, Material
from .niah import BUDGET, SOURCE, needles


@task(rule="all", budget=BUDGET, source=SOURCE, lone=True)
def niah_multivalue(draft: Draft) -> Material:
    """Four numbers of one key, all asked for, in natural text."""
    return needles(draft, values=4)
