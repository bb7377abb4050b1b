"""What a task is: a pure function from (tokenizer, length, seed, depth) to a prompt in token ids.

A task's file holds one function under `@task`, which draws what is hidden and asked. Everything that tasks share is
here: the frame of template, instruction, context, question and answer prefix; exact length; the answer's budget.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_longctx.measure.controls import CONTROLS, NO_NEEDLE, WRONG_KEY
from hf_longctx.measure.haystack import Haystack, open_haystack, unique_share
from hf_longctx.measure.overlap import literal_overlap
from hf_longctx.measure.prompts import STYLES, Codec, template_halves

from .scoring import RULES, score

REGISTRY: dict[str, Task] = {}
"""Every task by its name, in the order of their files' names."""

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


@dataclass(frozen=True)
class Prompt:
    """A prompt, ready to be read, and how its answer is scored.

    Attributes:
        task: the task's name.
        ids: token ids; with `budget` they make `length` exactly.
        expected: what the answer has to hold.
        rule: `all` or `any`.
        budget: most tokens to decode.
        length: target length in tokens.
        seed: the seed.
        question: what is asked.
        prefix: how the answer begins.
        needles: where what the answer needs stands: (first token, end) in `ids`.
        depth: where the first of them begins, as a share of the context; None where nothing is planted.
        unique_share: share of runs of 8 tokens that differ from all earlier ones.
        overlap: share of the question's content words that the planted facts hold; None where nothing is planted.
        padding: line feeds in front of the context.
        control: one of `CONTROLS`, or None.
        whole: whether an expected string must stand alone in the answer.
    """

    task: str
    ids: tuple[int, ...]
    expected: tuple[str, ...]
    rule: str
    budget: int
    length: int
    seed: int
    question: str
    prefix: str
    needles: tuple[tuple[int, int], ...]
    depth: float | None
    unique_share: float
    overlap: float | None
    padding: int
    control: str | None
    whole: bool

    def score(self, answer: str) -> float:
        """The score of an answer, from 0 to 1; for a wrong key, the one that a fooled scorer would give."""
        return score(answer, self.expected, self.rule, whole=self.whole)

    def settled(self, begun: str) -> bool:
        """Whether an answer that may go on has its full score already, whatever follows."""
        # What ends a word at the last character may yet be the beginning of a longer one.
        return self.score(begun) == 1.0 and (not self.whole or self.score(begun[:-1]) == 1.0)


@dataclass(frozen=True)
class Task:
    """A named task; call it for a prompt.

    Attributes:
        name: as on the command line.
        summary: one line.
        draw: what the task's file defines.
        rule: `all` or `any`.
        budget: most answer tokens.
        source: paper and definition.
        control: whether there are questions without an answer; where all of the text is the answer there are none.
        files: the form of the user's file that it needs, or None.
        sample: gives what such a file may hold, a small one of our own writing: to look at, not to score.
    """

    name: str
    summary: str
    draw: Callable[[Draft], Material]
    rule: str
    budget: int
    source: str
    control: bool = True
    files: str | None = None
    sample: Callable[[], Any] | None = None

    @property
    def whole(self) -> bool:
        """Whether an expected string must stand alone in the answer; RULER's own rule takes any substring."""
        return not self.source.startswith("RULER")

    def __call__(
        self,
        tokenizer: Any,
        length: int,
        seed: int,
        depth: float | None = None,
        *,
        style: str = "prefix",
        haystack: str | Haystack | None = None,
        files: str | Path | None = None,
        control: str | None = None,
    ) -> Prompt:
        """A prompt. The same arguments give the same ids, in any process.

        Args:
            tokenizer: the tokenizer of the model under test.
            length: tokens of the prompt and its answer together.
            seed: any integer.
            depth: where the fact stands that is asked for, from 0 to 1; None draws it.
            style: one of `prompts.STYLES`.
            haystack: what stands for natural text, in tasks whose definition asks for some: `kjv`, `prose` (None),
                `filler` or a folder.
            files: the user's file, for tasks over one.
            control: one of `CONTROLS`: leave the asked fact out, or ask for a key that was never planted. Nothing
                right can be said then.

        Returns:
            The prompt.

        Raises:
            Unfit: if there is no such prompt; `TooShort` where the length has no room for it.
            ValueError: for a depth outside 0 to 1, an unknown style, a missing file, or a control that does not exist
                or that the task has not.
        """
        if depth is not None and not 0 <= depth <= 1:
            raise ValueError(f"depth={depth!r}: it must be from 0 (the beginning) to 1 (the end)")
        if control is not None and control not in CONTROLS:
            raise ValueError(f"control={control!r} does not exist: choose one of {', '.join(CONTROLS)}, or None")
        if control and not self.control:
            raise ValueError(f"task {self.name!r} has no control: all of its text is the answer; leave control out")
        if self.files is not None and files is None:
            raise ValueError(f"task {self.name!r} asks about a file of yours: give files=, {self.files}")
        codec = Codec(tokenizer)
        hay = haystack if isinstance(haystack, Haystack) else open_haystack(haystack)
        key = f"{self.name}/{seed}"
        path = None if files is None else Path(files)
        draft = Draft(codec, length, key, random.Random(key), depth, control, hay, path)
        material = self.draw(draft)
        head, tail = _frame(codec, style, material)
        room = length - len(head) - len(tail) - self.budget
        if room < 1:
            raise TooShort(
                f"task {self.name!r} needs more than {length} tokens: template, question and answer take "
                f"{length - room}"
            )
        context = material.fill(room)
        if len(context.ids) != room:
            raise RuntimeError(f"task {self.name!r} filled {len(context.ids)} of {room} tokens: this is a bug of it")
        needles = tuple((start + len(head), end + len(head)) for start, end in context.needles)
        planted = bool(material.facts) and control is None
        ids = (*head, *context.ids, *tail)
        return Prompt(
            task=self.name,
            ids=ids,
            expected=material.expected,
            rule=self.rule,
            budget=self.budget,
            length=length,
            seed=seed,
            question=material.question,
            prefix=material.prefix,
            needles=needles,
            depth=round(context.needles[0][0] / room, 4) if context.needles else None,
            unique_share=round(unique_share(ids), 4),
            overlap=round(literal_overlap(" ".join(material.facts), material.question), 4) if planted else None,
            padding=context.padding,
            control=control,
            whole=self.whole,
        )


def task(
    *,
    rule: str,
    budget: int,
    source: str,
    control: bool = True,
    files: str | None = None,
    sample: Callable[[], Any] | None = None,
) -> Callable[[Callable[[Draft], Material]], Task]:
    """Register a function as the task of its name.

    Args:
        rule: `all` or `any`.
        budget: most answer tokens.
        source: paper and definition.
        control: whether there are questions without an answer.
        files: the form of the user's file that it needs.
        sample: gives what such a file may hold.

    Returns:
        A decorator that makes the function a `Task`; the first line of its docstring is the summary.

    Raises:
        ValueError: for an unknown rule or a name that another file has taken.
    """
    if rule not in RULES:
        raise ValueError(f"rule={rule!r} is not a scoring rule: choose one of {', '.join(RULES)}")

    def register(draw: Callable[[Draft], Material]) -> Task:
        name = draw.__name__
        known = REGISTRY.get(name)
        if known is not None and known.draw.__module__ != draw.__module__:
            raise ValueError(f"task name {name!r} is taken by {known.draw.__module__}: choose another")
        summary = inspect.cleandoc(draw.__doc__ or name).splitlines()[0]
        REGISTRY[name] = Task(name, summary, draw, rule, budget, source, control, files, sample)
        return REGISTRY[name]

    return register


def _frame(codec: Codec, style: str, material: Material) -> tuple[list[int], list[int]]:
    """Ids before and after the context."""
    if style not in STYLES:
        raise ValueError(f"style={style!r} is not a prompt style: choose one of {', '.join(STYLES)}")
    has_template = bool(getattr(codec.tokenizer, "chat_template", None))
    if style == "chat" and not has_template:
        raise ValueError("style='chat' needs a chat template and this tokenizer has none: use style='base'")
    if has_template and style != "base":
        before, after = template_halves(codec, material.instruction)
        ending = material.prefix if style == "prefix" else ""
    else:
        before, after, ending = f"{material.instruction}\n\n", "\n", material.prefix
    head = codec.encode(before)
    if codec.begins_with_bos() and head[:1] != [codec.tokenizer.bos_token_id]:
        head = [codec.tokenizer.bos_token_id, *head]
    return head, codec.encode(f"\n\n{material.question}{after}{ending}")
