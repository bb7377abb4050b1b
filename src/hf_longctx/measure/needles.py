"""Needles: facts with a random value, each its own relation.

Several needles can share one context, which saves a prefill for each of them. Needles of one form ("the magic number
for CITY is ...") then distract from each other, and what is measured is multi-key recall. So every relation here has
words of its own; the test stays a test of distance.

A value is drawn at random, so it can neither be known from training nor guessed.
"""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass

VALUE_KINDS = ("digits", "words", "uuid")
"""What a needle's value may be: a seven-digit number, an adjective and a noun, or a UUID."""


def _items(text: str) -> list[str]:
    return text.replace("\n", "|").strip("|").split("|")


# One relation a phrase. No two share what is told or whose it is: a model that mixes up two of them fails at
# telling facts apart, not at distance. None contains a full stop: an answer ends at its first one.
_RELATIONS = _items("""
the access code for the north gate|the telephone extension of the librarian|the serial number of the blue piano
the password of the harbour office|the registration of the mayor's barge|the combination of the bakery safe
the call sign of the weather balloon|the pin of the tram driver|the shelf mark of the cookery manuscript
the hallmark of the silver ring|the grid reference of the buried anchor|the bib of the marathon winner
the population of the river town|the login of the theatre cloakroom|the beacon signal of the southern lighthouse
the kiln setting of the porcelain studio|the frequency of the jazz station|the meter reading in the mill cellar
the loan slip of the botanical atlas|the ticket of the village postman|the licence plate of the fire engine
the invoice for the copper roof|the voucher for the hotel breakfast|the parcel label of the polar explorer
the passport of the young diplomat|the permit of the street juggler|the patent of the folding ladder
the docket for the repaired umbrella|the warranty of the coffee grinder|the chassis of the racing tricycle
the dossier of the lost comet|the ear tag of the shepherd's ram|the prescription of the retired gardener
the customs seal of the tea chest|the subscription of the crossword fan|the badge of the museum guard
the receipt for the brass telescope|the charter of the rowing society|the visa of the Danish architect
the locker of the tall swimmer|the hatch key of the grain silo|the census entry of the monastery
the firmware of the robot arm|the evidence tag of the forged letter|the scorecard of the archery club
the calibration of the seismograph|the mileage of the delivery van|the price of the emerald crown
the salary of the court jester|the debt of the careless count|the attendance at the circus premiere
the circulation of the evening paper|the budget of the opera house|the weight of the granite obelisk
the altitude of the mountain hut|the harvest of the vanilla farm|the toll at the stone bridge
the membership of the chess champion|the catalogue entry of the oldest map|the reservation of the night nurse
the batch of the cheese wheel|the account of the orchard cooperative|the alarm setting of the jewellery shop
the jersey of the clumsy goalkeeper|the pension of the blind sailor|the turnout at the island election
the capacity of the water tower|the fingerprint file of the pickpocket|the royalty of the novelist
the odometer of the postal motorcycle|the ballot of the school janitor|the lottery stub of the widow
the ransom for the stolen portrait|the fine of the reckless cyclist|the bounty for the white wolf
the luggage tag of the film director|the hull marking of the research submarine|the deed of the windmill
the ring band of the courier pigeon|the dowry of the merchant's daughter|the tax bill of the candle workshop
""")

_WORD_NOUNS = _items("""
code name|password|secret word|nickname|code word|motto|passphrase|trade name|mascot|cover name|label|project name
""")
_OWNER = re.compile(r" (of|for|from|in|at|behind|off) .*")

ADJECTIVES = _items("""
amber|brave|calm|crimson|dusty|eager|frozen|gentle|golden|hollow|humble|icy|ivory|jagged|keen|lively|mellow
misty|narrow|noble|olive|pale|polished|proud|quiet|rapid|rustic|scarlet|shiny|silent|silver|sleepy|steady|stormy
sunny|tender|tidy|violet|wandering|witty
""")
NOUNS = _items("""
acorn|anchor|badger|basket|beacon|bridge|candle|canyon|carpet|castle|cobra|compass|cradle|falcon|feather|fiddle
forest|fountain|garden|glacier|hammer|harbor|island|kettle|ladder|lantern|meadow|mirror|monkey|orchard|otter
paddle|pebble|pigeon|pocket|rabbit|ribbon|saddle|spider|summit|ticket|tunnel|turtle|valley|walnut|whistle|willow
window
""")


@dataclass(frozen=True)
class Needle:
    """One fact and how it is asked for.

    Attributes:
        relation: what the value belongs to; unique in the bank.
        sentence: the fact as it stands in the text.
        question: what the model is asked.
        prefix: how a full answer begins, up to the value.
        value: what the model has to say.
        kind: one of `VALUE_KINDS`.
    """

    relation: str
    sentence: str
    question: str
    prefix: str
    value: str
    kind: str


def relations(kind: str = "digits") -> tuple[str, ...]:
    """The bank: every relation once, in a fixed order.

    Args:
        kind: one of `VALUE_KINDS`; what holds words is called a code name or a motto, not a number.

    Returns:
        At least 64 distinct phrases.

    >>> len(relations()) >= 64 and len(set(relations())) == len(relations())
    True
    >>> relations()[2], relations("words")[2]
    ('the serial number of the blue piano', 'the secret word of the blue piano')
    """
    if kind != "words":
        return tuple(_RELATIONS)
    owners = [_OWNER.search(relation) for relation in _RELATIONS]
    return tuple(
        relation if owner is None else f"the {_WORD_NOUNS[index % len(_WORD_NOUNS)]}{owner.group()}"
        for index, (relation, owner) in enumerate(zip(_RELATIONS, owners))
    )


def draw_value(kind: str, rng: random.Random) -> str:
    """Draw a random value.

    Args:
        kind: one of `VALUE_KINDS`.
        rng: where the randomness comes from.

    Returns:
        The value as text.

    Raises:
        ValueError: for an unknown kind.

    >>> len(draw_value("digits", random.Random(0)))
    7
    """
    if kind == "digits":
        return str(rng.randrange(1_000_000, 10_000_000))
    if kind == "words":
        return f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"
    if kind == "uuid":
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))
    raise ValueError(f"values={kind!r} is not a kind of value: choose one of {', '.join(VALUE_KINDS)}")


def draw_unheld(kind: str, rng: random.Random, held: Callable[[str], bool]) -> str:
    """Draw a random value that the haystack does not hold: what stands in the text by itself is no random value.

    Args:
        kind: one of `VALUE_KINDS`.
        rng: where the randomness comes from.
        held: as `Haystack.holds`.

    Returns:
        The value as text.

    Raises:
        ValueError: for an unknown kind, or a text that holds a thousand values in a row.

    >>> draw_unheld("digits", random.Random(0), lambda value: value.startswith("7"))[0]
    '8'
    """
    for _ in range(1000):
        value = draw_value(kind, rng)
        if not held(value):
            return value
    raise ValueError(f"the haystack holds the values of kind {kind!r} that needles would have: choose values='uuid'")


def make_needle(index: int, value: str, kind: str) -> Needle:
    """The needle of one relation of the bank with a given value.

    Args:
        index: which relation, from 0.
        value: the value it holds.
        kind: the kind of the value, kept for scoring.

    Returns:
        The needle.

    >>> make_needle(0, "4071223", "digits").sentence
    'The access code for the north gate is 4071223.'
    """
    relation = relations(kind)[index]
    capital = relation[0].upper() + relation[1:]
    return Needle(
        relation=relation,
        sentence=f"{capital} is {value}.",
        question=f"What is {relation}?",
        prefix=f"{capital} is",
        value=value,
        kind=kind,
    )


def draw_needles(*, kind: str, seed: str, held: Callable[[str], bool] = lambda value: False) -> tuple[Needle, ...]:
    """The whole bank in random order, each relation with a value of its own.

    Args:
        kind: one of `VALUE_KINDS`.
        seed: any text; the same text gives the same needles.
        held: whether the haystack has a value already, as `Haystack.holds`; another is drawn then.

    Returns:
        One needle for each relation.

    Raises:
        ValueError: for an unknown kind.

    >>> draw_needles(kind="words", seed="a") == draw_needles(kind="words", seed="a")
    True
    """
    rng = random.Random(seed)
    order = rng.sample(range(len(relations())), len(relations()))
    values: dict[str, None] = {}
    while len(values) < len(order):
        values[draw_unheld(kind, rng, held)] = None
    return tuple(make_needle(index, value, kind) for index, value in zip(order, values))


def typical_needles(kind: str, *, seed: str = "typical", draws: int = 4) -> tuple[Needle, ...]:
    """Every relation of the bank with a few random values: what lengths are measured on.

    Args:
        kind: one of `VALUE_KINDS`.
        seed: any text.
        draws: how many values per relation.

    Returns:
        `draws` needles for each relation.
    """
    rng = random.Random(seed)
    return tuple(
        make_needle(index, draw_value(kind, rng), kind) for index in range(len(relations())) for _ in range(draws)
    )


def first_line(answer: str) -> str:
    r"""The first line of an answer that is not blank, which is what counts.

    >>> first_line("  4071223. It is\nThe")
    '4071223. It is'
    """
    lines = answer.strip().splitlines()
    return lines[0].strip() if lines else ""


def is_hit(answer: str, needle: Needle) -> bool:
    """Does the first line of an answer hold the needle's value?

    The match is exact after normalising: case and runs of spaces or hyphens are ignored in words, commas between
    digits in numbers, and the value must stand alone (`1234567` within `12345678` is no hit).

    Args:
        answer: what the model said, as decoded.
        needle: the fact that was asked for.

    Returns:
        True for a hit.

    >>> fact = make_needle(0, "1234567", "digits")
    >>> is_hit(" 1,234,567.", fact), is_hit(" 12345678", fact)
    (True, False)
    """
    return (
        _normalised_pattern(needle.value, needle.kind).search(_normalise(first_line(answer), needle.kind)) is not None
    )


def _normalise(text: str, kind: str) -> str:
    if kind == "digits":
        return re.sub(r"(?<=\d),(?=\d)", "", text)
    if kind == "words":
        return re.sub(r"[\s\-]+", " ", text).casefold()
    return text.casefold()


def _normalised_pattern(value: str, kind: str) -> re.Pattern[str]:
    beside: str = {"digits": r"\d", "words": r"\w", "uuid": r"[\w\-]"}[kind]
    return re.compile(f"(?<!{beside}){re.escape(_normalise(value, kind))}(?!{beside})")
