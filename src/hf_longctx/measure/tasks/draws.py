"""Random names, keys, words and codes, all of them distinct, from our own small word lists."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterator

from hf_longctx.measure import prose
from hf_longctx.measure.needles import ADJECTIVES, NOUNS

_NAMES = """
Aldous Amara Anselm Ayumi Bastien Beatrix Bjorn Calista Casimir Cosima Dagny Darius Delphine Eamon Eloise Emeka
Fabrizio Farah Fenella Gideon Giselle Gunnar Halima Hector Hiroko Ignatius Imogen Ingrid Jarek Joaquin Jocasta
Kalinda Kwame Lavinia Leopold Linnea Magnus Marisol Mirela Nadira Nikolai Noemi Octavia Odhran Otto Paloma
Percival Priya Quentin Quilla Rafaela Rashid Rosalind Sabine Solomon Svetlana Tabitha Tariq Thaddeus Ulrika
Umberto Valentina Viggo Wanda Wilhelm Xanthe Ximena Yannick Yusra Zacharias Zelda
"""
NAMES = tuple(_NAMES.split())
"""First names that occur in none of our haystacks' generators."""

_FIRST = tuple(dict.fromkeys((*ADJECTIVES, *NOUNS, *prose.LOOKS, *prose.THINGS)))
_SECOND = tuple(dict.fromkeys((*NOUNS, *prose.THINGS)))
_JOINTS = "and under over beside behind near without upon around beyond against before toward"
_BETWEEN = ("", *_JOINTS.split())
"""What joins the two parts of a compound; one that joins with nothing is used up first."""

COMPOUNDS = len(_BETWEEN) * sum(first != second for first in _FIRST for second in _SECOND)
"""How many different words `words` gives."""


def keys(rng: random.Random) -> Iterator[str]:
    """Distinct adjective-noun keys without end; once a pair has been used a further noun is added.

    >>> next(keys(random.Random(0)))
    'quiet-meadow'
    """
    used: set[str] = set()
    while True:
        key = f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"
        while key in used:
            key += f"-{rng.choice(NOUNS)}"
        used.add(key)
        yield key


def words(rng: random.Random) -> Iterator[str]:
    """Distinct closed compounds, `COMPOUNDS` of them, then it ends; none is part of another.

    The first 10,000 are such as `lanternbridge`; once they are used up, such as `lanternunderbridge` follow.

    >>> next(words(random.Random(0))), COMPOUNDS
    ('walnutbench', 140700)
    """
    for between in _BETWEEN:
        joined = [f"{first}{between}{second}" for first in _FIRST for second in _SECOND if first != second]
        yield from rng.sample(joined, len(joined))


def letters(rng: random.Random, size: int, *, upper: bool = False) -> Iterator[str]:
    """Distinct strings of random letters.

    >>> len(next(letters(random.Random(0), 6)))
    6
    """
    alphabet = string.ascii_uppercase if upper else string.ascii_lowercase
    yield from distinct(lambda: "".join(rng.choices(alphabet, k=size)))


def distinct(draw: Callable[[], str]) -> Iterator[str]:
    """What a function draws, repeats left out."""
    used: set[str] = set()
    while True:
        one = draw()
        if one not in used:
            used.add(one)
            yield one
