"""Prompts in token ids of the model under test.

A prompt is head + context + tail, and the answer has room reserved behind it:

    length = head + context + tail + answer budget, exactly

The head holds the BOS token, the opening of the chat template and an instruction; the tail the question, the rest of
the template and perhaps the beginning of the answer. Questions differ in length and the context must not, so the
answer budget is what remains, never less than the longest answer needs.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .needles import Needle

STYLES = ("prefix", "chat", "base")
"""`prefix`: the chat template, if any, and the answer's beginning; `chat`: the template alone; `base`: no template."""

INSTRUCTION = "Read the text. A question about one detail in it follows."

_SLACK = 6
"""Tokens an answer may spend around its value: quotes, a space, the full stop."""

_BATCH = 256
"""Sentences tokenised at a time."""

_HOLE = "\u2038context\u2038"
"""Stands for the context while the chat template is rendered; no template or needle holds such a thing."""


class Codec:
    """A tokenizer, reduced to what prompts need: segments in, ids out, with nothing added.

    Args:
        tokenizer: a Hugging Face tokenizer.

    Raises:
        TypeError: if it cannot encode text.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not callable(tokenizer) or not hasattr(tokenizer, "decode"):
            raise TypeError(f"tokenizer is {type(tokenizer).__name__}: pass the model's Hugging Face tokenizer")
        self.tokenizer = tokenizer
        self._gap = self._find_gap()

    def encode(self, text: str) -> list[int]:
        """Ids of a segment of the prompt, without BOS or EOS; special tokens written in it are read as such.

        Args:
            text: the segment.

        Returns:
            Token ids.
        """
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def sentence(self, text: str) -> list[int]:
        """Ids of a sentence that follows another, with the space before it.

        Each is encoded by itself, so that a needle has the same ids wherever it stands.

        Args:
            text: one sentence.

        Returns:
            Token ids.
        """
        return self._spelled([self._gap + text])[0]

    def stream(self, texts: Iterator[str]) -> Iterator[list[int]]:
        """Ids of one sentence after the other, tokenised as they are needed.

        Args:
            texts: sentences without surrounding white space, without end.

        Yields:
            Token ids of one sentence; the first has no space before it.
        """
        yield self._spelled([next(texts)])[0]
        while batch := [self._gap + text for text in itertools.islice(texts, _BATCH)]:
            yield from self._spelled(batch)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, special tokens left out.

        Args:
            ids: token ids.

        Returns:
            The text as the tokenizer gives it.
        """
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def spell(self, text: str) -> list[int]:
        """Ids of plain text, nothing added: what looks like a special token in it is spelled out.

        Args:
            text: any text.

        Returns:
            Token ids.
        """
        return self._spelled([text])[0] if text else []

    def begins_with_bos(self) -> bool:
        """Does this tokenizer put a BOS token before a text of its own accord?

        Returns:
            True if it does.
        """
        bos = self.tokenizer.bos_token_id
        return bos is not None and list(self.tokenizer("a")["input_ids"])[:1] == [bos]

    def _spelled(self, texts: list[str]) -> list[list[int]]:
        """Ids of plain text: what looks like a special token in it is spelled out and never becomes one."""
        encoded = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [list(ids) for ids in encoded]

    def _find_gap(self) -> str:
        """The space between sentences: SentencePiece models add one of their own to every segment."""
        for gap in (" ", ""):
            ids = self.encode("It rains.") + self.encode(f"{gap}They wait.")
            if self.decode(ids).strip() == "It rains. They wait.":
                return gap
        return " "


@dataclass(frozen=True)
class Prompt:
    """How the prompts of a run are built; every question shares head and context.

    Attributes:
        head: ids before the context.
        codec: the tokenizer.
        after: text between the question and the end of the prompt.
        style: one of `STYLES`.
        prefixed: whether the answer's beginning is part of the prompt.
        answer_tokens: tokens that the longest answer needs, at most decoded.
        longest_tail: tokens of the longest tail.
    """

    head: tuple[int, ...]
    codec: Codec
    after: str
    style: str
    prefixed: bool
    answer_tokens: int
    longest_tail: int

    def tail(self, needle: Needle) -> list[int]:
        """Ids after the context, for one question.

        Args:
            needle: what is asked for.

        Returns:
            Token ids.
        """
        return self.codec.encode(_tail_text(needle, after=self.after, style=self.style, prefixed=self.prefixed))

    def room(self, length: int) -> int:
        """Context tokens at a target length; not positive where nothing fits.

        Args:
            length: target length in tokens.

        Returns:
            Tokens.
        """
        return length - len(self.head) - self.longest_tail - self.answer_tokens


def build_prompt(codec: Codec, style: str, needles: Sequence[Needle]) -> Prompt:
    """Prepare the prompts for one tokenizer and style.

    Args:
        codec: the tokenizer.
        style: one of `STYLES`.
        needles: every needle that may be asked for, with typical values: they set the room kept for tail and answer.

    Returns:
        The prompt builder.

    Raises:
        ValueError: for an unknown style, `chat` without a chat template, or a template that drops the message.
    """
    if style not in STYLES:
        raise ValueError(f"style={style!r} is not a prompt style: choose one of {', '.join(STYLES)}")
    has_template = bool(getattr(codec.tokenizer, "chat_template", None))
    if style == "chat" and not has_template:
        raise ValueError("style='chat' needs a chat template and this tokenizer has none: use style='base'")
    templated = has_template and style != "base"
    before, after = template_halves(codec, INSTRUCTION) if templated else ("", "")
    head = codec.encode(before) if templated else []
    if codec.begins_with_bos() and head[:1] != [codec.tokenizer.bos_token_id]:
        head = [codec.tokenizer.bos_token_id, *head]
    prefixed = style != "chat"
    style = "chat" if templated else "base"
    tails = {
        needle.relation: len(codec.encode(_tail_text(needle, after=after, style=style, prefixed=prefixed)))
        for needle in needles
    }
    answers = [f" {n.value}." if prefixed else f"{n.prefix} {n.value}." for n in needles]
    return Prompt(
        head=tuple(head),
        codec=codec,
        after=after,
        style=style,
        prefixed=prefixed,
        answer_tokens=max(len(codec.encode(answer)) for answer in answers) + _SLACK,
        longest_tail=max(tails.values()),
    )


def _tail_text(needle: Needle, *, after: str, style: str, prefixed: bool) -> str:
    if style == "chat":
        return f"\n\n{needle.question}{after}" + (needle.prefix if prefixed else "")
    return f"\n\nQuestion: {needle.question}\nAnswer: {needle.prefix}"


def template_halves(codec: Codec, instruction: str) -> tuple[str, str]:
    """The rendered chat template before the context and after the question.

    Args:
        codec: a tokenizer with a chat template.
        instruction: how the user's message begins.

    Returns:
        The text up to the context, instruction included, and what follows the question.

    Raises:
        ValueError: if the template drops the message or renders it more than once.
    """
    message = {"role": "user", "content": f"{instruction}\n\n{_HOLE}"}
    text = codec.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    pieces = re.split(re.escape(_HOLE), text)
    if len(pieces) != 2:
        raise ValueError(
            f"the chat template renders the user's message {len(pieces) - 1} times, once is needed: use style='base'"
        )
    return pieces[0], pieces[1]
