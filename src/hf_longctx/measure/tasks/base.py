"""What a task is: a pure function from (tokenizer, length, seed, depth) to a prompt in token ids.

A task's file holds one function under `@task`, which draws what is hidden and asked. Everything that tasks share is
here: the frame of template, instruction, context, question and answer prefix; exact length; the answer's budget.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_longctx.measure.controls import CONTROLS
from hf_longctx.measure.haystack import Haystack, open_haystack, unique_share
from hf_longctx.measure.overlap import literal_overlap
from hf_longctx.measure.prompts import STYLES, Codec, template_halves

from .draft import Draft, Material, TooShort
from .scoring import RULES, score

REGISTRY: dict[str, Task] = {}
"""Every task by its name, in the order of their files' names."""


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
        lone: whether the text holds no other key to ask for, so that a wrong key is one that is not there.
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
    lone: bool = False
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
    lone: bool = False,
    files: str | None = None,
    sample: Callable[[], Any] | None = None,
) -> Callable[[Callable[[Draft], Material]], Task]:
    """Register a function as the task of its name.

    Args:
        rule: `all` or `any`.
        budget: most answer tokens.
        source: paper and definition.
        control: whether there are questions without an answer.
        lone: whether no other key of the text can be asked for.
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
        REGISTRY[name] = Task(name, summary, draw, rule, budget, source, control, lone, files, sample)
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
