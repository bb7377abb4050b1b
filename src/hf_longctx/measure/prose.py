"""Prose without end: a seeded grammar that never says the same sentence twice.

Text that no model can have seen, of any length, needing no download. It is bland on purpose: it holds no numbers and
no facts that resemble a needle.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator


def _items(text: str) -> list[str]:
    return text.replace("\n", "|").strip("|").split("|")


_PEOPLE = _items("""
baker|carpenter|weaver|doctor|sailor|teacher|farmer|painter|miller|widow|shepherd|clerk|traveller|neighbour
blacksmith|fisherman|cousin|stranger|merchant|gardener|musician|postman|student|soldier|grandmother|cook|tailor
innkeeper|hunter|juggler
""")
_TRAITS = _items("""
old|young|tired|cheerful|careful|quiet|stubborn|curious|patient|hungry|proud|gentle|weary|thoughtful|restless
kind|nervous|clever|honest|forgetful
""")
_ACTIONS = _items("""
carried|mended|forgot|admired|borrowed|sold|painted|counted|lifted|cleaned|hid|found|dropped|measured|praised
polished|wrapped|inspected|sketched|washed|moved|bought|described|remembered|traded|weighed|examined|collected
""")
THINGS = _items("""
basket|lamp|ladder|coat|bucket|chair|kettle|drum|blanket|saddle|mirror|rope|candle|barrel|bench|cart|clock|broom
shovel|jug|pillow|lantern|book|hat|spoon|table|wheel|sail|net|anvil|fence|plank|curtain|carpet|bowl
""")
LOOKS = _items("""
wooden|heavy|broken|painted|narrow|shining|crooked|dusty|green|woollen|round|polished|cracked|plain|yellow|rusty
tall|empty|patched|striped|smooth|faded|curved
""")
_PLACES = _items("""
beside the river|near the chapel|behind the stables|under the oak trees|at the edge of the field|in the market
along the quay|below the hill|by the old well|outside the tavern|across the square|in the upper room
on the gravel path|at the end of the lane|close to the bridge|inside the barn|on the stone steps
beyond the hedge|among the vines|at the harbour|over the footbridge|in the cool pantry
""")
_TIMES = _items("""
before breakfast|in the early spring|after the long rain|that same evening|toward noon|when the wind had turned
late in the autumn|on market day|just after sunrise|during the feast|on a grey morning|as the lamps were lit
before the first snow|at the close of summer|while the bells rang|soon after the harvest|on the longest night
in the heat of the day
""")
_REASONS = _items("""
because the road was flooded|since nobody else had time|although the others disagreed
so that the children could rest|because winter was near|while the dogs slept|although it looked like rain
since the door stood open|because a guest was due|so that nothing would be wasted|although the work was slow
because the mill had closed|while the soup grew cold|since the letter had not come|although no one had asked
so that the horses might drink
""")
_FEELINGS = _items("""
and nobody complained|and the matter was settled|which pleased everyone|and then sat down to rest
which seemed a pity|and whistled all the way home|and spoke of it for weeks|which took most of the day
and went away content|and asked for nothing in return|which surprised the whole street
and thought no more about it
""")


_LISTS = (_PEOPLE, _TRAITS, _ACTIONS, THINGS, LOOKS, _PLACES, _TIMES, _REASONS, _FEELINGS)
_VOCABULARY = " ".join(word for words in _LISTS for word in words) + " it was who told that somebody the and did stood"


def sentences(seed: str) -> Iterator[str]:
    """Sentences without end, none of them twice.

    Args:
        seed: any text; the same text gives the same sentences.

    Yields:
        One sentence at a time, ending in a full stop.

    >>> from itertools import islice
    >>> first = list(islice(sentences("a"), 500))
    >>> len(set(first)), first == list(islice(sentences("a"), 500))
    (500, True)
    """
    rng = random.Random(seed)
    said: set[str] = set()
    while True:
        sentence = _sentence(rng)
        if sentence not in said:
            said.add(sentence)
            yield sentence


def may_say(phrase: str) -> bool:
    """Whether a phrase may come: all of its words are among those that sentences are made of.

    Args:
        phrase: any text; case does not matter, and a word within a longer one counts.

    >>> may_say("heavy Basket"), may_say("soup"), may_say("Cosima"), may_say("1234567")
    (True, True, False, False)
    """
    words = re.findall(r"\w+", phrase.casefold())
    return bool(words) and all(word in _VOCABULARY for word in words)


def _sentence(rng: random.Random) -> str:
    who, other = (f"the {rng.choice(_TRAITS)} {person}" for person in rng.sample(_PEOPLE, 2))
    what, second = (f"the {rng.choice(LOOKS)} {thing}" for thing in rng.sample(THINGS, 2))
    did, also = rng.sample(_ACTIONS, 2)
    where, when = rng.choice(_PLACES), rng.choice(_TIMES)
    why, so = rng.choice(_REASONS), rng.choice(_FEELINGS)
    text = rng.choice(
        (
            f"{when}, {who} {did} {what} {where}, {so}.",
            f"{who} {did} {what} {where} {why}.",
            f"{where} {who} {did} {what}, and {other} {also} {second} {when}.",
            f"{who} {did} {what} and {also} {second} {when}, {so}.",
            f"{when} {what} stood {where}, and {who} {did} it {why}.",
            f"it was {other} who {did} {what} {where}, {why}, {so}.",
            f"{who} told {other} that somebody {did} {what} {when}, {so}.",
            f"{why}, {who} and {other} {did} {what} {where}.",
        )
    )
    return text[0].upper() + text[1:]
