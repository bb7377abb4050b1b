"""Documents packed into sequences of exactly one length, without a leak from one to the next.

Each piece of a document begins with BOS, ends with EOS, and counts its positions from 0. Where positions restart, both
transformers and the attention engine begin a new document, so no piece attends to another. The first token of a piece
is no target: the piece before it cannot know it. Labels are not shifted here: the model's loss shifts them, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

#: The label of a token that is no target.
IGNORED = -100

Positions = Callable[[int], Sequence[int]]


@dataclass(frozen=True)
class Edges:
    """What stands at both ends of a piece.

    Attributes:
        bos: ids put before it, none where the model has no BOS.
        eos: ids put after it, none where the model has no EOS.
        filler: id of the one or two tokens that a sequence may end in when no piece fits; never a target.
    """

    bos: tuple[int, ...] = ()
    eos: tuple[int, ...] = ()
    filler: int = 0

    @classmethod
    def of(cls, tokenizer: object) -> Edges:
        """The edges of a tokenizer's special tokens."""
        bos, eos = (getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id"))
        pad = getattr(tokenizer, "pad_token_id", None)
        filler = next((one for one in (eos, pad, bos) if one is not None), 0)
        return cls(() if bos is None else (bos,), () if eos is None else (eos,), filler)

    @property
    def least(self) -> int:
        """Tokens of the shortest piece that teaches something: its edges, and two tokens or one between edges."""
        return max(2, len(self.bos) + 1 + len(self.eos))


@dataclass
class _Row:
    """A sequence as it is filled.

    Attributes:
        input_ids: token ids.
        position_ids: position of each token within its piece.
        labels: the ids again, `IGNORED` where a token is no target. Not shifted.
    """

    input_ids: list[int] = field(default_factory=list)
    position_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.input_ids)

    def add(self, ids: Sequence[int], positions: Sequence[int]) -> None:
        """Append a piece."""
        self.input_ids.extend(ids)
        self.position_ids.extend(positions)
        self.labels.extend((IGNORED, *ids[1:]))

    def fill(self, room: int, filler: int) -> None:
        """Fill the last `room` tokens: they go on with the last piece, and are no targets."""
        last = self.position_ids[-1]
        self.input_ids.extend([filler] * room)
        self.position_ids.extend(range(last + 1, last + 1 + room))
        self.labels.extend([IGNORED] * room)

    def row(self) -> dict[str, list[int]]:
        """What a model is called with."""
        return {"input_ids": self.input_ids, "position_ids": self.position_ids, "labels": self.labels}


def pack(
    documents: Iterable[Sequence[int]],
    length: int,
    edges: Edges,
    *,
    positions: Positions = range,
) -> Iterator[dict[str, list[int]]]:
    """Cut documents into pieces and lay them one after the other into sequences of exactly `length` tokens.

    A document that does not fit into what is left of a sequence is cut there and goes on in the next, as a piece of
    its own. What is left when the documents end is dropped.

    Args:
        documents: token ids, without special tokens; empty ones are passed over.
        length: tokens of a sequence.
        edges: what stands at both ends of a piece.
        positions: positions of a piece from its number of tokens, ascending; the default counts from 0.

    Yields:
        `input_ids`, `position_ids` and `labels`, each of `length` whole numbers.

    Raises:
        ValueError: a length that cannot hold a piece.

    >>> edges = Edges(bos=(1,), eos=(2,))
    >>> rows = list(pack([[10, 11], [20, 21, 22, 23, 24]], 8, edges))
    >>> rows[0]["input_ids"], rows[0]["position_ids"]
    ([1, 10, 11, 2, 1, 20, 21, 2], [0, 1, 2, 3, 0, 1, 2, 3])
    >>> rows[0]["labels"]
    [-100, 10, 11, 2, -100, 20, 21, 2]
    """
    if isinstance(length, bool) or not isinstance(length, int) or length < edges.least:
        raise ValueError(
            f"length is {length!r}: a training sequence must hold at least {edges.least} tokens, one piece with its "
            "beginning and end; choose a longer one"
        )
    around = len(edges.bos) + len(edges.eos)
    row = _Row()
    for document in documents:
        done = 0
        while done < len(document):
            taken = min(len(document) - done, length - len(row) - around)
            ids = [*edges.bos, *document[done : done + taken], *edges.eos]
            if len(ids) >= edges.least:  # a single token without edges teaches nothing
                row.add(ids, positions(len(ids)))
            done += taken
            room = length - len(row)
            if room < edges.least:
                if room:
                    row.fill(room, edges.filler)
                yield row.row()
                row = _Row()
