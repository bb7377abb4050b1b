"""RULER's `niah_multiquery`.

>>> from hf_longctx.measure.tasks import find
>>> from hf_longctx.measure.word_tokenizer import WordTokenizer
>>> prompt = find("niah_multiquery")(WordTokenizer(), length=400, seed=0)
>>> print(*prompt.expected)
8607732 7259238 5894069 8934923
"""

from __future__ import annotations

from .base import task
from .draft import Draft, Material
from .niah import BUDGET, SOURCE, needles


@task(rule="all", budget=BUDGET, source=SOURCE, lone=True)
def niah_multiquery(draft: Draft) -> Material:
    """Four keys with a number each, all asked for, in natural text."""
    return needles(draft, keys_=4, asked=4)
