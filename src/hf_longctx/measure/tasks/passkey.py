"""The pass key in repeated filler. The easy one: models pass it at lengths where they retrieve nothing else.

>>> from hf_longctx.measure.tasks import find
>>> from hf_longctx.measure.word_tokenizer import WordTokenizer
>>> prompt = find("passkey")(WordTokenizer(), length=256, seed=0)
>>> print(prompt.question, "->", *prompt.expected)
What is the pass key? -> 51815
"""

from __future__ import annotations

from .base import task
from .draft import Context, Draft, Material
from .fill import hide


@task(rule="all", budget=16, source="Landmark Attention (arXiv 2305.16300), section 4.2: pass key", lone=True)
def passkey(draft: Draft) -> Material:
    """The easy one: a five-digit pass key, said twice, in repeated filler. A pass says little."""
    value = str(draft.rng.randrange(10_000, 100_000))
    fact = f"The pass key is {value}. Keep it in mind: {value} is the pass key."
    depths = draft.depths(1)
    key = "locker number" if draft.wrong_key else "pass key"

    def fill(room: int) -> Context:
        planted = [fact] if draft.planted else []
        return hide(draft.codec, draft.sentences("filler"), planted, depths[: len(planted)], room, asked=len(planted))

    return Material(
        instruction="A lot of idle text follows, and a pass key somewhere in it. Find the pass key.",
        question=f"What is the {key}?",
        prefix=f"The {key} is",
        expected=(value,),
        facts=(fact,),
        fill=fill,
    )
