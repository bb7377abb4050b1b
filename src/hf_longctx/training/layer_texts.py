"""The rows that layers are compared on: text with a few hidden facts, told again at its end."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hf_longctx.measure.needles import Needle, draw_needles
from hf_longctx.measure.prompts import Codec

from .dataset import encode
from .packing import Edges

#: Places of a row whose next-token probabilities are compared, beside all of the facts' values.
PLACES = 128
#: Facts hidden in a row.
FACTS = 3


@dataclass(frozen=True)
class LayerText:
    """A row to read.

    Attributes:
        ids: token ids.
        places: places whose next-token probabilities are compared.
        values: places before the tokens of the facts' values.
    """

    ids: list[int]
    places: list[int]
    values: list[int]


def make_texts(documents: Iterator[str], tokenizer: Any, length: int, rows: int, seed: int) -> list[LayerText]:
    """Rows of text with facts at even depths, which are told again at the end, where their values can be known."""
    codec, edges = Codec(tokenizer), Edges.of(tokenizer)
    texts: list[LayerText] = []
    for row in range(rows):
        needles = draw_needles(kind="digits", seed=f"layers/{seed}/{row}")[:FACTS]
        rng = random.Random(f"layers/{seed}/{row}")
        facts = [codec.sentence(needle.sentence) for needle in needles]
        told, values = _told(codec, rng.sample(needles, len(needles)))
        room = length - len(edges.bos) - sum(map(len, facts)) - len(told)
        if room < len(facts) + 1:
            raise ValueError(
                f"length is {length}, and {length - room} tokens of a row are facts and questions: choose a longer one"
            )
        body = _enough(documents, tokenizer, room)
        ids = [*edges.bos]
        plain: list[int] = []
        for part, fact in enumerate([*facts, []]):
            piece = body[part * room // (len(facts) + 1) : (part + 1) * room // (len(facts) + 1)]
            plain += range(len(ids), len(ids) + len(piece) - 1)  # the last one would predict a fact
            ids += [*piece, *fact]
        chosen = sorted(rng.sample(plain, min(PLACES, len(plain))))
        texts.append(LayerText([*ids, *told], chosen, [len(ids) + place - 1 for place in values]))
    return texts


def _told(codec: Codec, needles: Sequence[Needle]) -> tuple[list[int], list[int]]:
    """Facts told again, and where in these tokens their values stand."""
    ids: list[int] = []
    values: list[int] = []
    for needle in needles:
        whole, before = codec.sentence(needle.sentence), codec.sentence(needle.prefix)
        shared = next((i for i, (a, b) in enumerate(zip(whole, before)) if a != b), min(len(whole), len(before)))
        values += range(len(ids) + shared, len(ids) + len(whole))
        ids += whole
    return ids, values


def _enough(documents: Iterator[str], tokenizer: Any, count: int) -> list[int]:
    """The beginning of the next document, or of the next few joined where one is too short."""
    ids: list[int] = []
    for text in documents:
        ids += encode(tokenizer, text)
        if len(ids) >= count:
            return ids[:count]
    raise ValueError(
        f"the text ends {count - len(ids)} tokens before the last row: give more, or fewer or shorter rows"
    )
