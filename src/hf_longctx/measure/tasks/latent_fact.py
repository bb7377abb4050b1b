"""Needles that share no word with their question: what links them is a piece of common knowledge.

>>> from hf_longctx.measure.tasks import find
>>> from hf_longctx.measure.word_tokenizer import WordTokenizer
>>> prompt = find("latent_fact")(WordTokenizer(), length=256, seed=0)
>>> print(prompt.question, "->", *prompt.expected, prompt.overlap)
Which person flies planes? Answer with the name alone. -> Fenella 0.0
"""

from __future__ import annotations

from .base import task
from .draft import Context, Draft, Material
from .draws import NAMES
from .fill import hide

FACTS = (
    (
        "{} spent a whole week sketching the Eiffel Tower from a bench.",
        "Who has been to France?",
        "france french",
    ),
    ("{} photographed the Great Sphinx at dawn.", "Who has been to Egypt?", "egypt pharaoh"),
    ("{} still keeps a ticket of the Colosseum in a drawer.", "Who has been to Italy?", "italy italian rome roman"),
    ("{} was lost for an hour in the Forbidden City.", "Who has been to China?", "china chinese"),
    ("{} took part in the dawn tour of the Taj Mahal.", "Who has been to India?", "india"),
    ("{} sneezes for an hour whenever a kitten is near.", "Who has an allergy against cats?", "allerg cats kitten"),
    ("{} gets a swollen tongue after the smallest peanut.", "Who must not eat nuts?", "nuts peanut"),
    ("{} drinks coffee black, since even a drop of cream brings cramps.", "Who cannot digest milk?", "milk coffee"),
    ("{} pulled three molars before lunch and filled a fourth.", "Which person works as a dentist?", "dentist"),
    ("{} tuned the strings and rosined the bow for the quartet.", "Which person plays the violin?", "violin fiddle"),
    (
        "{} checked the altimeter and asked the tower for clearance.",
        "Which person flies planes?",
        "airplane aeroplane",
    ),
    (
        "{} fed the yeast at four and had the loaves out by seven.",
        "Which person bakes bread for a living?",
        "baker bake",
    ),
    ("{} blew out sixteen candles on Friday.", "Which person is a teenager?", "teenage sixteen student"),
    ("{} moved the rook, took the queen and said mate.", "Which person knows how to play chess?", "chess"),
    (
        "{} wiped the chalk from both hands and handed back the essays.",
        "Which person teaches at a school?",
        "teach school",
    ),
    (
        "{} needs a ramp wherever there are steps, and strong arms for the rims.",
        "Which person uses a wheelchair?",
        "wheelchair",
    ),
    (
        "{} came home with ribs of salt on both sleeves and a net full of herring.",
        "Which person catches fish?",
        "fish",
    ),
    (
        "{} put on black and stood by the grave of the one who shared the wedding bed.",
        "Which person lost a spouse?",
        "widow husband wife",
    ),
)
"""Facts about a person, the question each answers (no content word stands in both: a test compares them), and parts of
words that tell of another answer: a text that holds one may know of somebody else who was in Egypt, and the fact is
not hidden there."""


@task(
    rule="all",
    budget=24,
    source="after the idea of NoLiMa (arXiv 2502.05167); facts and questions are ours",
    lone=True,
)
def latent_fact(draft: Draft) -> Material:
    """The name in a fact that answers a question without sharing a word with it, in natural text."""
    told = {words: (fact, question) for fact, question, words in draft.rng.sample(FACTS, len(FACTS))}
    foreign = draft.unseen(told, words=True)
    fact, question = told[next(foreign)]
    name = next(draft.unseen(draft.rng.sample(NAMES, len(NAMES))))
    sentence = fact.format(name)
    depths = draft.depths(1)
    asked = told[next(foreign)][1] if draft.wrong_key else question

    def fill(room: int) -> Context:
        planted = [sentence] if draft.planted else []
        return hide(draft.codec, draft.sentences(), planted, depths[: len(planted)], room, asked=len(planted))

    return Material(
        instruction="Read the text. It mentions one person by name. A question about that person follows.",
        question=f"{asked} Answer with the name alone.",
        prefix="The name is",
        expected=(name,),
        facts=(sentence,),
        fill=fill,
    )
