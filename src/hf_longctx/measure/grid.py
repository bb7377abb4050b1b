"""Every cell of a trial as a probe: which ids are read, which are asked, what is expected."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .controls import CONTROLS, NO_NEEDLE, WRONG_KEY, kind_of
from .haystack import Haystack
from .needles import Needle, draw_needles, draw_unheld, make_needle, relations, typical_needles
from .placement import lay, place, shared_slots
from .probe import Branch
from .prompts import Codec, Prompt, build_prompt

MODES = ("shared", "single")
"""`shared`: distinct facts share one context; `single`: one needle a context, as in the classic test."""

_NEEDLE = "needle"
_EXCERPT_TOKENS = 60
_EXCERPT_CHARACTERS = 200


@dataclass(frozen=True)
class Probe:
    """One question about one context.

    Attributes:
        length: target length in tokens.
        depth: nominal depth from 0 to 1; None for a control.
        kind: `needle`, or that of a control (see `controls.kind_of`).
        needle: what is asked for.
        trunk: ids shared with other probes; only the first `at` of them belong to this one.
        at: trunk tokens before this probe branches off.
        rest: ids that follow, the question last.
        needle_at: index of the needle's first token in the prompt; None for a control.
        needle_ids: its token ids.
        limit: most answer tokens to decode.
        reason: why the probe cannot be asked as specified, or None.
        lone: whether it is a wrong key that the text does not hold.
    """

    length: int
    depth: float | None
    kind: str
    needle: Needle
    trunk: Sequence[int]
    at: int
    rest: tuple[int, ...]
    needle_at: int | None
    needle_ids: tuple[int, ...]
    limit: int
    reason: str | None = None
    lone: bool = False

    def prompt(self) -> list[int]:
        """All ids of the prompt, in order.

        Returns:
            Token ids, the answer's room not included.
        """
        return [*self.trunk[: self.at], *self.rest]

    def afresh(self) -> Probe:
        """The same prompt, sharing nothing.

        Returns:
            A probe that branches off at 0.
        """
        return replace(self, at=0, rest=tuple(self.prompt()))

    def branch(self) -> Branch:
        """This probe for `ask_all`.

        Returns:
            Where it branches off, and with what.
        """
        return Branch(self.at, self.rest, self.limit)

    def excerpt(self, codec: Codec) -> dict[str, str]:
        """The needle in its context, as text.

        Args:
            codec: the tokenizer.

        Returns:
            `before`, `needle` and `after`; for a control the end of the prompt is `before`.
        """
        ids = self.prompt()
        start = len(ids) if self.needle_at is None else self.needle_at
        stop = start + len(self.needle_ids)
        return {
            "before": codec.decode(ids[max(0, start - _EXCERPT_TOKENS) : start])[-_EXCERPT_CHARACTERS:],
            "needle": codec.decode(ids[start:stop]),
            "after": codec.decode(ids[stop : stop + _EXCERPT_TOKENS])[:_EXCERPT_CHARACTERS],
        }


@dataclass(frozen=True)
class Grid:
    """What is asked in every trial of a run.

    Attributes:
        codec: the tokenizer.
        prompt: how prompts are built.
        haystack: where the text comes from.
        lengths: target lengths in tokens, ascending.
        depths: depths from 0 to 1, ascending.
        values: the kind of the needles' values.
        mode: one of `MODES`.
        seed: the run's seed.
        longest: positions the model has, where they are learned; None where any length can be read.
    """

    codec: Codec
    prompt: Prompt
    haystack: Haystack
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    values: str
    mode: str
    seed: int
    longest: int | None = None

    def probes(self, trial: int) -> list[Probe]:
        """Every probe of a trial, by length and then depth, the controls of a length last.

        The text of a control is that of its length. `no-needle` asks for a fact that is not there, and for the value
        that it would have had; `wrong-key` asks for one fact, and for the value of another question of its length.

        Args:
            trial: which trial, from 0: another text, other needles, other values.

        Returns:
            The probes, the same for every variant.
        """
        found = list(self._shared(trial) if self.mode == "shared" else self._single(trial))
        return [self._checked(probe) for probe in found]

    def _key(self, trial: int, what: str) -> str:
        return f"{self.seed}/{trial}/{what}"

    def _rooms(self) -> dict[int, int]:
        return {length: self.prompt.room(length) for length in self.lengths}

    def _sentences(self, trial: int) -> Iterator[list[int]]:
        return self.codec.stream(self.haystack.sentences(self._key(trial, "haystack")))

    def _shared(self, trial: int) -> Iterator[Probe]:
        rooms = self._rooms()
        bank = draw_needles(kind=self.values, seed=self._key(trial, "needles"), held=self.haystack.holds)
        encoded = [self.codec.sentence(needle.sentence) for needle in bank]
        longest = max(map(len, encoded))
        slots = shared_slots(rooms, self.depths, longest)
        if len(slots) + len(CONTROLS) > len(bank):
            raise ValueError(
                f"lengths x depths need {len(slots)} distinct facts in one context, and two controls, and the bank "
                f"holds {len(bank)}: use fewer lengths or depths, or needles='single'"
            )
        control, stranger = bank[len(slots) : len(slots) + 2]
        context, placed = place(self._sentences(trial), slots, encoded[: len(slots)], max(*rooms.values(), 0))
        trunk = [*self.prompt.head, *context]
        spots = {cell: index for index, slot in enumerate(slots) for cell in slot.cells}
        for length in self.lengths:
            scored: list[Probe] = []
            for depth in self.depths:
                index = spots.get((length, depth))
                if index is None:
                    yield self._without_room(length, depth, control, longest)
                    continue
                probe = self._probe(
                    length,
                    depth,
                    bank[index],
                    trunk=trunk,
                    at=len(self.prompt.head) + rooms[length],
                    needle_at=len(self.prompt.head) + placed[index].at,
                    needle_ids=placed[index].ids,
                )
                scored.append(probe)
                yield probe
            random.Random(self._key(trial, f"wrong-key/{length}")).shuffle(scored)
            # Another planted fact is asked for; where there is none, one that was never there.
            yield self._wrong_key(length, scored[0].needle if len(scored) > 1 else stranger, scored)
            yield self._control(length, control, trunk=trunk, room=rooms[length])

    def _single(self, trial: int) -> Iterator[Probe]:
        rooms = self._rooms()
        rng = random.Random(self._key(trial, "needles"))
        relation, other, third = rng.sample(range(len(relations())), 3)
        held = self.haystack.holds
        control = make_needle(other, draw_unheld(self.values, rng, held), self.values)
        text, starts = lay(self._sentences(trial), max(*rooms.values(), 0))
        trunk = [*self.prompt.head, *text]
        for length in self.lengths:
            scored: list[Probe] = []
            for depth in self.depths:
                value = draw_unheld(self.values, random.Random(self._key(trial, f"value/{length}/{depth}")), held)
                needle = make_needle(relation, value, self.values)
                ids = self.codec.sentence(needle.sentence)
                spare = rooms[length] - len(ids)
                if spare < 0:
                    yield self._without_room(length, depth, needle, len(ids))
                    continue
                spot = max(start for start in starts if start <= round(depth * spare))
                probe = self._probe(
                    length,
                    depth,
                    needle,
                    trunk=trunk,
                    at=len(self.prompt.head) + spot,
                    needle_at=len(self.prompt.head) + spot,
                    needle_ids=tuple(ids),
                    between=(*ids, *text[spot:spare]),
                )
                scored.append(probe)
                yield probe
            yield self._wrong_key(length, make_needle(third, control.value, self.values), scored)
            yield self._control(length, control, trunk=trunk, room=rooms[length])

    def _probe(
        self,
        length: int,
        depth: float | None,
        needle: Needle,
        *,
        trunk: Sequence[int],
        at: int,
        needle_at: int | None,
        needle_ids: tuple[int, ...],
        between: tuple[int, ...] = (),
        kind: str = _NEEDLE,
    ) -> Probe:
        rest = (*between, *self.prompt.tail(needle))
        limit = self.prompt.answer_tokens
        return Probe(length, depth, kind, needle, trunk, at, rest, needle_at, needle_ids, limit)

    def _control(self, length: int, needle: Needle, *, trunk: Sequence[int], room: int) -> Probe:
        """A question over the text of a length for a fact that is not there, and its value, which is not either."""
        kind = kind_of(NO_NEEDLE)
        if room <= 0:
            return self._without_room(length, None, needle, 0, kind)
        at = len(self.prompt.head) + room
        return self._probe(length, None, needle, trunk=trunk, at=at, needle_at=None, needle_ids=(), kind=kind)

    def _wrong_key(self, length: int, other: Needle, scored: Sequence[Probe]) -> Probe:
        """The last of the scored prompts with the question for another fact, and the value that it had."""
        kind = kind_of(WRONG_KEY)
        if not scored:
            return self._without_room(length, None, other, 0, kind)
        fooled = scored[-1]
        asked = replace(other, value=fooled.needle.value)
        before = fooled.rest[: len(fooled.rest) - len(self.prompt.tail(fooled.needle))]
        rest = (*before, *self.prompt.tail(asked))
        lone = all(other != probe.needle for probe in scored)
        return replace(fooled, depth=None, kind=kind, needle=asked, rest=rest, lone=lone)

    def _without_room(
        self, length: int, depth: float | None, needle: Needle, needle_tokens: int, kind: str = _NEEDLE
    ) -> Probe:
        least = length - self.prompt.room(length) + needle_tokens
        reason = f"too short: template, question, answer and one needle need {least} tokens"
        return Probe(length, depth, kind, needle, (), 0, (), None, (), 0, reason)

    def _checked(self, probe: Probe) -> Probe:
        """Refuse a probe whose needle is not where it should be, or that does not fit: invalid, never wrong."""
        if probe.reason is not None:
            return probe
        ids = probe.prompt()
        if self.longest is not None and probe.length > self.longest:
            return replace(probe, reason=f"too long: the model has learned positions for {self.longest} tokens only")
        if len(ids) + probe.limit > probe.length:
            return replace(probe, reason=f"too long: {len(ids)} prompt and {probe.limit} answer tokens do not fit")
        if probe.needle_at is not None:
            found = tuple(ids[probe.needle_at : probe.needle_at + len(probe.needle_ids)])
            end = len(ids) - len(self.prompt.tail(probe.needle))
            if found != probe.needle_ids or probe.needle_at + len(probe.needle_ids) > end:
                return replace(probe, reason="the needle does not fit before the end of the context")
        return probe


def build_grid(
    tokenizer: object,
    haystack: Haystack,
    *,
    lengths: Sequence[int],
    depths: tuple[float, ...],
    values: str,
    mode: str,
    style: str,
    seed: int,
    longest: int | None = None,
) -> Grid:
    """Check the settings of a run and prepare its prompts.

    Args:
        tokenizer: the model's tokenizer.
        haystack: where the text comes from.
        lengths: target lengths in tokens.
        depths: from `depth_grid`.
        values: one of `VALUE_KINDS`.
        mode: one of `MODES`.
        style: one of `STYLES`.
        seed: any integer.
        longest: positions the model has, where they are learned.

    Returns:
        The grid.

    Raises:
        ValueError: for lengths that are no positive integers, or a mode, style or kind that does not exist.
    """
    check_lengths(lengths)
    if mode not in MODES:
        raise ValueError(f"needles={mode!r} is no way to place needles: choose one of {', '.join(MODES)}")
    codec = Codec(tokenizer)
    prompt = build_prompt(codec, style, typical_needles(values))
    return Grid(codec, prompt, haystack, tuple(sorted(set(lengths))), depths, values, mode, seed, longest)


def check_lengths(lengths: Sequence[int]) -> None:
    """Raise ValueError unless `lengths` holds whole numbers of tokens, at least one."""
    for length in lengths:
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise ValueError(f"lengths holds {length!r}: give whole numbers of tokens, at least 1")
    if not lengths:
        raise ValueError("lengths is empty: give at least one number of tokens")
