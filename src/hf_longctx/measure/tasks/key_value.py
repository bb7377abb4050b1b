"""Key-value retrieval from one JSON object.

>>> from hf_longctx.measure.tasks import find
>>> from hf_longctx.measure.word_tokenizer import WordTokenizer
>>> prompt = find("key_value")(WordTokenizer(), length=512, seed=0, depth=0.5)
>>> print(prompt.question, "->", *prompt.expected)
Which value has the key "a58be0e9-4e65-4b6f-bb21-93a7fa592e12"? -> 44bd805f-3add-4727-9b6c-fd3656c5190c
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from hf_longctx.measure.needles import draw_value

from .base import task
from .draft import Context, Draft, Material
from .draws import distinct
from .fill import stack


@task(rule="all", budget=64, source="Lost in the Middle (arXiv 2307.03172), section 3: key-value retrieval")
def key_value(draft: Draft) -> Material:
    """The value of one key of a JSON object of UUID pairs."""
    (depth,) = draft.depths(1)
    key, value = (draw_value("uuid", draft.rng) for _ in range(2))
    asked_key = next(_pairs(draft.seed))[0] if draft.wrong_key else key

    def fill(room: int) -> Context:
        asked = [(_pair(key, value), depth)] if draft.planted else []
        others = (_pair(*one) for one in _pairs(draft.seed))
        return stack(draft.codec, others, asked, room, opening="{", between=",\n ", closing="}")

    return Material(
        instruction="Read the value of one key in the JSON object below.",
        question=f'Which value has the key "{asked_key}"?',
        prefix=f'"{asked_key}": "',
        expected=(value,),
        facts=(_pair(key, value),),
        fill=fill,
    )


def _pair(key: str, value: str) -> str:
    return f'"{key}": "{value}"'


def _pairs(seed: str) -> Iterator[tuple[str, str]]:
    rng = random.Random(f"{seed}/others")
    drawn = distinct(lambda: draw_value("uuid", rng))
    while True:
        yield next(drawn), next(drawn)
