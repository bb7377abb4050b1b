"""A chain of facts, each naming the next, among chains that lead elsewhere.

>>> from hf_longctx.measure.tasks import find
>>> from hf_longctx.measure.word_tokenizer import WordTokenizer
>>> prompt = find("multihop")(WordTokenizer(), length=512, seed=0)
>>> print(prompt.question, "->", *prompt.expected)
Delphine had a parcel at first. It was handed on 3 times. Who has it in the end? -> Viggo
"""

from __future__ import annotations

import itertools

from .base import task
from .draft import Context, Draft, Material
from .draws import NAMES
from .fill import hide

_HOPS = 3
_CHAINS = 3
_LINK = "{} gave the parcel to {}."


@task(rule="all", budget=24, source="ours; chains of facts as in BABILong (arXiv 2406.10149) and RULER's tracking")
def multihop(draft: Draft) -> Material:
    """Who holds a parcel after three hand-overs, scattered in any order, among two other chains; natural text."""
    people = list(itertools.islice(draft.unseen(draft.rng.sample(NAMES, len(NAMES))), _CHAINS * (_HOPS + 1)))
    chains = [people[index * (_HOPS + 1) : (index + 1) * (_HOPS + 1)] for index in range(_CHAINS)]
    links = [[_LINK.format(*pair) for pair in zip(chain, chain[1:])] for chain in chains]
    depths = draft.depths(_HOPS * _CHAINS)
    # The last link holds the answer: it stands at the depth that was asked for, and a control leaves it out.
    asked = links[0][::-1]
    facts = [*asked, *links[1], *links[2]]
    cut = 0 if draft.planted else 1

    def fill(room: int) -> Context:
        return hide(
            draft.codec, draft.sentences(), facts[cut:], depths[cut:], room, asked=_HOPS if draft.planted else 0
        )

    start, end = chains[1 if draft.wrong_key else 0][0], chains[0][-1]
    return Material(
        instruction="Read the text. Several parcels go from hand to hand in it. A question about one of them follows.",
        question=f"{start} had a parcel at first. It was handed on {_HOPS} times. Who has it in the end?",
        prefix=f"In the end the parcel of {start} is with",
        expected=(end,),
        facts=tuple(asked),
        fill=fill,
    )
