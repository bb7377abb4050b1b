"""What a task draws from, and what it draws: everything that the files of tasks share but the frame of the prompt."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hf_longctx.measure.controls import NO_NEEDLE, WRONG_KEY
from hf_longctx.measure.haystack import Haystack, open_haystack
from hf_longctx.measure.prompts import Codec

_PATIENCE = 1000
"""Draws in a row that a text may hold."""


class Unfit(ValueError):
    """The task has no such prompt, with a reason: it is invalid, never wrong, and other tasks go on."""


class TooShort(Unfit):
    """The length has no room for the task."""


@dataclass(frozen=True)
class Context:
    """What stands between instruction and question.

    Attributes:
        ids: token ids.
        needles: first token and end of each thing that the answer needs, in tokens from the context's start.
        padding: line feeds in front of the context, where it is made of whole pieces that do not fill the room.
    """

    ids: tuple[int, ...]
    needles: tuple[tuple[int, int], ...] = ()
    padding: int = 0


@dataclass(frozen=True)
class Material:
    """What a task draws for one prompt.

    Attributes:
        instruction: what the model is told before the context.
        question: what it is asked after the context.
        prefix: how its answer begins.
        expected: what the answer has to hold; for a wrong key what a scorer would count that is fooled.
        facts: the sentences that hold the answer; empty where all of the context does.
        fill: given a number of tokens, the context of exactly that length; raises `TooShort`.
    """

    instruction: str
    question: str
    prefix: str
    expected: tuple[str, ...]
    facts: tuple[str, ...]
    fill: Callable[[int], Context]


@dataclass(frozen=True)
class Draft:
    """What a task may draw from.

    Attributes:
        codec: the tokenizer.
        length: target length in tokens.
        seed: the task's name and the seed, for generators of its own.
        rng: seeded with them. The same draws must be made whatever `depth` and `control` are; what a wrong key needs
            is drawn last.
        depth: where the fact stands that is asked for, from 0 to 1; None draws it.
        control: one of `CONTROLS`, or None for a question that is scored.
        haystack: what stands for natural text.
        files: the user's file, for tasks over one.
    """

    codec: Codec
    length: int
    seed: str
    rng: random.Random
    depth: float | None
    control: str | None
    haystack: Haystack
    files: Path | None

    @property
    def planted(self) -> bool:
        """Whether the fact that is asked for, or for a wrong key the one that is not, stands in the text."""
        return self.control != NO_NEEDLE

    @property
    def wrong_key(self) -> bool:
        """Whether the question is for a key that is nowhere."""
        return self.control == WRONG_KEY

    def unseen(self, drawn: Iterable[str], haystack: str | None = None, *, words: bool = False) -> Iterator[str]:
        """What is drawn, less what the text already holds: an answer must not stand in it by itself.

        Args:
            drawn: names, keys or values, in random order.
            haystack: as `sentences`.
            words: whether each is a list of words, of which the text must hold none.

        Yields:
            Those that the text does not hold.

        Raises:
            Unfit: where none is left, or the text holds a thousand in a row.
        """
        source = self.haystack if haystack is None else open_haystack(haystack)
        held = 0
        for one in drawn:
            held = held + 1 if any(map(source.holds, one.split() if words else [one])) else 0
            if not held:
                yield one
            elif held == _PATIENCE:
                break
        raise Unfit(
            f"the haystack {source.name!r} holds what this task would hide in it: choose another, such as prose"
        )

    def sentences(self, haystack: str | None = None) -> Iterator[str]:
        """Sentences without end: natural text, or a haystack that the task's definition names."""
        source = self.haystack if haystack is None else open_haystack(haystack)
        return source.sentences(f"{self.seed}/haystack")

    def depths(self, count: int) -> list[float]:
        """Depths of `count` facts, drawn from 40 even steps without replacement as in RULER; the first is `depth`."""
        steps = [index / 39 for index in range(40)]
        drawn = self.rng.sample(steps, count) if count <= 40 else [self.rng.random() for _ in range(count)]
        return drawn if self.depth is None else [self.depth, *drawn[1:]]
