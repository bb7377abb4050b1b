"""A tokenizer with one id a word, number or sign, for examples and for models whose weights are written by hand."""

from __future__ import annotations

import re
from collections.abc import Iterable

_PIECE = re.compile(r" ?\w+| ?[^\w\s]|\s")


class WordTokenizer:
    """Words get ids in the order in which they are first seen; numbers come from the upper half.

    It answers to as much of a Hugging Face tokenizer's interface as `prompts.Codec` asks for.

    Args:
        vocabulary: how many ids there are, at least 8.

    Attributes:
        bos_token_id: 0, put before every text unless `add_special_tokens` is false.
        eos_token_id: 1, never produced.

    Raises:
        ValueError: fewer than 8 ids, or, when encoding, more different words or numbers than half of them.

    >>> tokenizer = WordTokenizer(64)
    >>> tokenizer("Gate 7 is open.")["input_ids"], tokenizer.decode([0, 2, 32, 3, 4, 5])
    ([0, 2, 32, 3, 4, 5], 'Gate 7 is open.')
    """

    bos_token_id = 0
    eos_token_id = 1
    chat_template = None

    def __init__(self, vocabulary: int = 1 << 16) -> None:
        if vocabulary < 8:
            raise ValueError(f"vocabulary={vocabulary}: give at least 8 ids")
        self._size = vocabulary
        self._next = {False: 2, True: vocabulary // 2}
        self._ids: dict[str, int] = {}
        self._pieces: dict[int, str] = {}

    def __len__(self) -> int:
        return self._size

    def __call__(
        self, text: str | list[str], *, add_special_tokens: bool = True, split_special_tokens: bool = False
    ) -> dict[str, list]:
        """Ids of a text, or of each of several."""
        if isinstance(text, list):
            return {"input_ids": [self(one, add_special_tokens=add_special_tokens)["input_ids"] for one in text]}
        ids = [self._id(piece) for piece in _PIECE.findall(text)]
        return {"input_ids": [self.bos_token_id, *ids] if add_special_tokens else ids}

    def decode(self, ids: Iterable[int], **_: object) -> str:
        """The text of ids; an id that stands for nothing yet gives nothing."""
        return "".join(self._pieces.get(int(one), "") for one in ids)

    def is_number(self, token: int) -> bool:
        """Whether an id is one of those kept for numbers."""
        return token >= self._size // 2

    def _id(self, piece: str) -> int:
        if piece not in self._ids:
            number = piece.strip().isdigit()
            new = self._next[number]
            if new >= (self._size if number else self._size // 2):
                kind = "numbers" if number else "words"
                raise ValueError(
                    f"WordTokenizer({self._size}) has no ids left for {kind}: make one with a larger vocabulary"
                )
            self._next[number] += 1
            self._ids[piece], self._pieces[new] = new, piece
        return self._ids[piece]
