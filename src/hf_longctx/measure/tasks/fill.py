"""Ways to fill a number of tokens exactly: facts hidden in text, whole pieces stacked, one text that grows."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence

from hf_longctx.measure.placement import lay
from hf_longctx.measure.prompts import Codec

from .draft import Context, TooShort, Unfit


def hide(
    codec: Codec, sentences: Iterator[str], facts: Sequence[str], depths: Sequence[float], room: int, *, asked: int = 0
) -> Context:
    """Sentences with facts between them, each at the last sentence boundary at or before its depth.

    Args:
        codec: the tokenizer.
        sentences: text without end.
        facts: sentences to hide.
        depths: one for each fact, from 0 to 1.
        room: tokens to fill.
        asked: how many of the facts, from the first, the answer needs.

    Returns:
        The context; the needles are the asked facts, in the order given.

    Raises:
        TooShort: if the facts alone do not fit.
    """
    needles = [codec.sentence(fact) for fact in facts]
    spare = room - sum(map(len, needles))
    if spare < 0:
        raise TooShort(f"{len(facts)} facts take {room - spare} tokens and {room} are free: choose a longer length")
    text, starts = lay(codec.stream(sentences), spare)
    starts = starts or [0]
    spots = [starts[bisect_right(starts, round(depth * spare)) - 1] for depth in depths]
    ids: list[int] = []
    where: dict[int, tuple[int, int]] = {}
    done = 0
    for index in sorted(range(len(facts)), key=lambda index: (spots[index], depths[index])):
        ids += text[done : spots[index]]
        done = spots[index]
        where[index] = (len(ids), len(ids) + len(needles[index]))
        ids += needles[index]
    ids += text[done:]
    return Context(tuple(ids), tuple(where[index] for index in range(asked)))


def stack(
    codec: Codec,
    pieces: Iterable[str],
    asked: Sequence[tuple[str, float]],
    room: int,
    *,
    opening: str = "",
    title: Callable[[int], str] = lambda number: "",
    between: str = "\n",
    closing: str = "",
) -> Context:
    """Whole pieces, as many as fit, with the asked ones among them; the rest of the room is padded in front.

    Args:
        codec: the tokenizer.
        pieces: what fills the room, none of it cut; may end.
        asked: pieces that the answer needs, each with its depth from 0 to 1 counted in pieces.
        room: tokens to fill.
        opening: text before the first piece.
        title: a piece's number, from 1, to the text before it.
        between: text between two pieces.
        closing: text after the last.

    Returns:
        The context; its needles are the asked pieces.

    Raises:
        TooShort: if the asked pieces alone do not fit.
        Unfit: if the pieces end before the room is full.
    """
    opens, joint, closes = (codec.encode(text) for text in (opening, between, closing))

    def cost(number: int, ids: Sequence[int]) -> int:
        return len(codec.encode(title(number))) + len(ids) + (len(joint) if number > 1 else 0)

    wanted = [(codec.spell(text), depth) for text, depth in asked]
    used = len(opens) + len(closes) + sum(cost(number, ids) for number, (ids, _) in enumerate(wanted, start=1))
    if used > room:
        raise TooShort(f"the pieces asked for take {used} tokens and {room} are free: choose a longer length")
    rows: list[list[int]] = []
    for piece in pieces:
        ids = codec.spell(piece)
        more = cost(len(wanted) + len(rows) + 1, ids)
        if used + more > room:
            break
        rows.append(ids)
        used += more
    else:
        raise Unfit(
            f"all there is, {len(rows) + len(wanted)} pieces, fills {used} of {room} tokens: choose a shorter length "
            "or give more text"
        )
    whole: list[tuple[list[int], int | None]] = [(row, None) for row in rows]
    for offset, index in enumerate(sorted(range(len(wanted)), key=lambda index: wanted[index][1])):
        whole.insert(round(wanted[index][1] * len(rows)) + offset, (wanted[index][0], index))
    padding = pad(codec, room - used)
    out = [*padding, *opens]
    where: dict[int, tuple[int, int]] = {}
    for number, (row, which) in enumerate(whole, start=1):
        out += [*(joint if number > 1 else []), *codec.encode(title(number))]
        if which is not None:
            where[which] = (len(out), len(out) + len(row))
        out += row
    out += closes
    return Context(tuple(out), tuple(where[index] for index in range(len(wanted))), len(padding))


def grow(codec: Codec, text: Callable[[int], str], least: int, room: int, *, most: int | None = None) -> Context:
    """The longest text of a growing kind that fits, padded in front.

    Args:
        codec: the tokenizer.
        text: a size to a text; a larger size gives a longer text.
        least: the smallest size.
        room: tokens to fill.
        most: the largest size, where there is one.

    Returns:
        The context.

    Raises:
        TooShort: if the smallest does not fit.
        Unfit: if the largest leaves room for more.
    """

    def ids(size: int) -> list[int]:
        return codec.spell(text(size))

    low, found = least, ids(least)
    if len(found) > room:
        raise TooShort(f"the smallest text takes {len(found)} tokens and {room} are free: choose a longer length")
    high, over = low, 0
    while over <= room:
        if high == most:
            raise Unfit(f"the longest text there is takes {over} of {room} tokens: choose a shorter length")
        high = 2 * high if most is None else min(2 * high, most)
        grown = ids(high)
        over = len(grown)
        if over <= room:
            low, found = high, grown
    # Sizes are nearly proportional to tokens, so guess by that, and halve in turn: each look writes a whole text.
    for look in itertools.count():
        if high - low <= 1:
            break
        guess = low + (room - len(found)) * (high - low) // (over - len(found))
        middle = (low + high) // 2 if look % 3 == 2 else min(max(guess, low + 1), high - 1)
        grown = ids(middle)
        if len(grown) <= room:
            low, found = middle, grown
        else:
            high, over = middle, len(grown)
    padding = pad(codec, room - len(found))
    return Context((*padding, *found), padding=len(padding))


def pad(codec: Codec, count: int) -> list[int]:
    """`count` line feeds; a tokenizer may write one with a space mark before it, which is left out."""
    return codec.encode("\n")[-1:] * count
