"""Where needles stand: one context that serves every length and depth.

The key-value cache of a text is a prefix of that of the longer text. So one context at the longest length holds the
needles of all shorter ones too: a needle at depth d of length L stands at d times the context tokens of L. Where two
cells want nearly the same place one needle serves both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_TOLERANCE = 0.04
"""Two cells share a needle up to this share of the context apart, or an eighth of the step between depths."""


@dataclass(frozen=True)
class Slot:
    """A place for one needle.

    Attributes:
        want: token index in the context at or before which it should begin.
        deadline: token index by which it must have ended.
        cells: the (length, depth) pairs that it serves.
    """

    want: int
    deadline: int
    cells: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Placed:
    """A needle in its context.

    Attributes:
        at: token index in the context where it begins.
        ids: its token ids.
    """

    at: int
    ids: tuple[int, ...]


def depth_grid(depths: int | Sequence[float]) -> tuple[float, ...]:
    """Depths from 0 (the beginning) to 1 (the end).

    Args:
        depths: how many, evenly spaced (one stands in the middle), or the depths themselves.

    Returns:
        Ascending depths, rounded to 4 places.

    Raises:
        ValueError: for fewer than one, or one outside 0 to 1.

    >>> depth_grid(5)
    (0.0, 0.25, 0.5, 0.75, 1.0)
    """
    if isinstance(depths, int) and not isinstance(depths, bool):
        if depths < 1:
            raise ValueError(f"depths={depths} is no number of depths: give at least 1")
        return (0.5,) if depths == 1 else tuple(round(index / (depths - 1), 4) for index in range(depths))
    if isinstance(depths, bool | str):
        raise ValueError(f"depths={depths!r} is no number of depths: give an integer or a list of numbers from 0 to 1")
    given = tuple(sorted({round(float(depth), 4) for depth in depths}))
    if not given or given[0] < 0 or given[-1] > 1:
        raise ValueError(f"depths={list(depths)!r}: give at least one depth, each from 0 to 1")
    return given


def shared_slots(rooms: Mapping[int, int], depths: Sequence[float], needle_tokens: int) -> list[Slot]:
    """Places for a context that is cut at several lengths.

    Args:
        rooms: target length to context tokens.
        depths: the depths to test at each length.
        needle_tokens: tokens of the longest needle.

    Returns:
        Slots by ascending place. A length without room for a needle has no cell in any of them.

    >>> [slot.want for slot in shared_slots({100: 80, 200: 180}, (0.0, 0.5, 1.0), 10)]
    [0, 35, 70, 85, 170]
    """
    ordered = sorted(depths)
    step = min((b - a for a, b in zip(ordered, ordered[1:])), default=1.0)
    slots: list[Slot] = []
    for length in sorted(rooms):
        room = rooms[length]
        if room < needle_tokens:
            continue
        for depth in ordered:
            want = round(depth * (room - needle_tokens))
            near = [slot for slot in slots if abs(slot.want - want) <= min(_TOLERANCE, step / 8) * room]
            if near:
                best = min(near, key=lambda slot: abs(slot.want - want))
                slots[slots.index(best)] = Slot(best.want, best.deadline, (*best.cells, (length, depth)))
            else:
                slots.append(Slot(want, room, ((length, depth),)))
    return sorted(slots, key=lambda slot: slot.want)


def place(
    sentences: Iterator[list[int]], slots: Sequence[Slot], needles: Sequence[Sequence[int]], total: int
) -> tuple[list[int], list[Placed]]:
    """Lay sentences out and put each needle between two of them.

    A needle stands at the last sentence boundary at or before its place. One that has to end early goes before one
    that has time.

    Args:
        sentences: token ids of one sentence after the other, without end.
        slots: the places, as many as needles.
        needles: token ids of the needles.
        total: tokens of the context.

    Returns:
        The `total` context ids, and each needle's place in the order given.

    >>> ids, placed = place(iter([[1] * 6] * 9), [Slot(10, 20, ()), Slot(14, 20, ())], [[7, 7], [8, 8]], 20)
    >>> [needle.at for needle in placed], ids
    ([6, 14], [1, 1, 1, 1, 1, 1, 7, 7, 1, 1, 1, 1, 1, 1, 8, 8, 1, 1, 1, 1])
    """
    ids: list[int] = []
    waiting = list(range(len(slots)))
    placed: dict[int, Placed] = {}
    while len(ids) < total:
        sentence = next(sentences)
        while (chosen := _due(waiting, slots, needles, len(ids), len(sentence))) is not None:
            placed[chosen] = Placed(len(ids), tuple(needles[chosen]))
            ids.extend(needles[chosen])
            waiting.remove(chosen)
        ids.extend(sentence)
    return ids[:total], [placed[index] for index in range(len(slots))]


def lay(sentences: Iterator[list[int]], total: int) -> tuple[list[int], list[int]]:
    """Lay sentences out without a needle.

    Args:
        sentences: token ids of one sentence after the other, without end.
        total: tokens of the context.

    Returns:
        The `total` context ids, and the token indices where a sentence begins.

    >>> lay(iter([[1, 2, 3]] * 9), 7)
    ([1, 2, 3, 1, 2, 3, 1], [0, 3, 6])
    """
    ids: list[int] = []
    starts: list[int] = []
    while len(ids) < total:
        starts.append(len(ids))
        ids.extend(next(sentences))
    return ids[:total], starts


def _due(
    waiting: Sequence[int], slots: Sequence[Slot], needles: Sequence[Sequence[int]], now: int, ahead: int
) -> int | None:
    """The needle to put down before `ahead` more tokens follow, if any."""
    due = [index for index in waiting if slots[index].want < now + ahead]
    if not due:
        return None
    first = min(due, key=lambda index: (slots[index].deadline, slots[index].want))
    # A needle whose place comes a little later still goes first where waiting would push it past its deadline.
    hurried = min(waiting, key=lambda index: slots[index].deadline)
    late = slots[hurried].deadline < now + len(needles[first]) + ahead + len(needles[hurried])
    return hurried if late else first
