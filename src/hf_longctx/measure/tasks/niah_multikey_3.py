"""RULER's `niah_multikey_3`.

>>> from hf_longctx.measure.tasks import find
>>> from hf_longctx.measure.word_tokenizer import WordTokenizer
>>> prompt = find("niah_multikey_3")(WordTokenizer(), length=600, seed=0)
>>> print(prompt.question, "->", *prompt.expected)
What is the secret code of b232b292-037d-42f1-80d7-a3d84c2f25a6? -> 2d1e6e83-72aa-4c77-9d49-c9a2197f72d5
"""

from __future__ import annotations

from .base import task
from .draft import Draft, Material
from .niah import BUDGET, SOURCE, needles


@task(rule="all", budget=BUDGET, source=SOURCE)
def niah_multikey_3(draft: Draft) -> Material:
    """One UUID asked for by a UUID in a text that consists of such needles."""
    return needles(draft, needle_haystack=True, key="uuid", value="uuid")
