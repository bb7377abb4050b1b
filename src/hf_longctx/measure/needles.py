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
from dataclasses import dataclass

VALUE_KINDS = ("digits", "words", "uuid")
"""What a needle's value may be: a seven-digit number, an adjective and a noun, or a UUID."""

_FORMS = (
    ("{s} is {v}.", "What is {s}?", "{s} is"),
    ("{s} was recorded as {v}.", "What was {s} recorded as?", "{s} was recorded as"),
    ("{s} was changed to {v}.", "What was {s} changed to?", "{s} was changed to"),
    ("{s} is now {v}.", "What is {s} now?", "{s} is now"),
)
"""(sentence, question, answer prefix), with {s} the relation and {v} the value."""


def _items(text: str) -> list[str]:
    return text.replace("\n", "|").strip("|").split("|")


# One relation a phrase. No two share both their noun and their place, and none contains a full stop: an answer ends
# at its first one.
_RELATIONS = _items("""
the access code for the north gate|the librarian's telephone extension|the serial number of the blue piano
the catalogue number of the oldest map|the password of the harbour office|the registration of the mayor's barge
the combination of the bakery safe|the call sign of the weather balloon
the membership number of the chess champion|the patent number of the folding ladder
the locker key tag of the swimmer|the invoice reference for the copper roof|the parcel number of the violin case
the account number of the orchard cooperative|the reservation code of the night nurse
the tracking number of the polar crate|the licence number of the ferry captain
the meter reading in the mill cellar|the file number of the hidden recording|the tag number of the tortoise
the alarm code of the jewellery shop|the inventory number of the bronze owl|the pin of the tram driver
the voter number of the school janitor|the channel code of the mountain radio
the hallmark number of the silver ring|the permit number of the street juggler
the dossier number of the lost comet|the batch number of the cheese wheel|the number plate of the fire engine
the voucher code for the hotel breakfast|the hull number of the research submarine
the shelf mark of the cookery manuscript|the recipe number of the ginger biscuits
the docket number for the repaired umbrella|the beacon code of the southern lighthouse
the login of the theatre cloakroom|the colony number of the glass beehive
the passport number of the young diplomat|the winning ticket of the village raffle
the lot number of the marble clock|the order number for the purple curtains
the sample number from the green lagoon|the ring number of the courier pigeon
the warranty code of the coffee grinder|the chassis number of the racing tricycle
the border pass of the circus troupe|the pledge number of the opera donor
the room code of the visiting astronomer|the grid reference of the buried anchor
the badge number of the museum guard|the receipt number for the brass telescope
the enrolment number of the youngest apprentice|the vault code of the town bank
the keypad code of the cathedral door|the contract number of the paddle boat
the prescription number of the retired gardener|the stall number of the honey seller
the index number of the fossil fern|the unlock code of the projector room
the jersey number of the tall goalkeeper|the customs mark of the tea chest|the route number of the coal train
the staff number of the ship's cook|the kiln setting of the porcelain studio
the visitor number of the Danish architect|the loan number of the botanical atlas
the hatch code of the grain silo|the queue number at the shoe repair counter|the dial code of the jazz station
the census number of the monastery|the ear tag of the shepherd's ram|the clause number in the treaty draft
the token number for the laundry machine|the firmware code of the robot arm
the evidence number of the forged letter|the crate number of the chandelier|the entry code of the salt mine
the claim number for the broken windmill|the scorecard number of the archery club
the case number of the surgeon's diary|the calibration value of the seismograph|the travel pass of the two monks
the subscription number of the crossword fan|the hangar code of the red glider
the dose code of the antidote bottle|the wiring code behind the organ|the season pass of the tulip garden
the radio code of the rescue team|the depot number of the snow plough|the proof number of the new banknote
the kennel number of the sleeping greyhound|the charter number of the rowing society
the deposit number of the puppet maker|the hotline of the ice factory|the studio number of the tattoo artist
the quarantine number of the grey parrot|the buoy number off the east reef|the foundry number of the church bell
the harvest code of the vanilla farm|the toll number of the stone bridge|the drawer number of the stamp dealer
the dive number of the pearl fisher|the bib number of the marathon winner|the seal number of the royal decree
the boarding number of the film director|the setting of the greenhouse thermostat
the tax number of the candle workshop|the observation number of the double star
the luggage number of the grey suitcase|the pattern number of the parlour wallpaper
the emergency code of the cable car|the guest number of the famous poet
""")

_WORD_NOUNS = _items("""
code name|password|secret word|nickname|code word|motto|passphrase|trade name|mascot|cover name|label|project name
""")
_OWNER = re.compile(r" (of|for|from|in|at|behind|off) .*")

_ADJECTIVES = _items("""
amber|brave|calm|crimson|dusty|eager|frozen|gentle|golden|hollow|humble|icy|ivory|jagged|keen|lively|mellow
misty|narrow|noble|olive|pale|polished|proud|quiet|rapid|rustic|scarlet|shiny|silent|silver|sleepy|steady|stormy
sunny|tender|tidy|violet|wandering|witty
""")
_NOUNS = _items("""
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
        return f"{rng.choice(_ADJECTIVES)} {rng.choice(_NOUNS)}"
    if kind == "uuid":
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))
    raise ValueError(f"values={kind!r} is not a kind of value: choose one of {', '.join(VALUE_KINDS)}")


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
    sentence, question, prefix = _FORMS[index % len(_FORMS)]
    capital = relation[0].upper() + relation[1:]
    return Needle(
        relation=relation,
        sentence=sentence.format(s=capital, v=value),
        question=question.format(s=relation),
        prefix=prefix.format(s=capital),
        value=value,
        kind=kind,
    )


def draw_needles(*, kind: str, seed: str) -> tuple[Needle, ...]:
    """The whole bank in random order, each relation with a value of its own.

    Args:
        kind: one of `VALUE_KINDS`.
        seed: any text; the same text gives the same needles.

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
        values[draw_value(kind, rng)] = None
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
