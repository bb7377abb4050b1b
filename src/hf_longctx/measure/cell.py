"""A cell of a needle run, one variant and trial: its text is read once, and every probe of it is asked on the way."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_longctx.hf.lengths import held_length, length_dependent

from .controls import WRONG_KEY, control_of
from .grid import Grid, Probe
from .listener import Listener
from .needles import is_hit
from .probe import CHUNK, Reader, ask_all, stop_ids
from .sharing import group, spent_tokens
from .store import RunStore
from .subject import patched_as, switches_rope
from .variants import Variant

logger = logging.getLogger(__name__)

OnRow = Callable[[dict[str, Any]], None]


@dataclass
class Cell:
    """The probes of one variant and trial.

    Attributes:
        store: where the rows are kept.
        variant: what the model is patched as.
        trial: from 0.
        probes: what is asked, by ascending length.
        grid: what they were made from.
        exact: whether every prompt is read afresh.
        progress: whether to show a bar, on a terminal.
        on_row: called with each new row.
    """

    store: RunStore
    variant: Variant
    trial: int
    probes: Sequence[Probe]
    grid: Grid
    exact: bool
    progress: bool
    on_row: OnRow | None

    def run(self, model: Any, listener: Listener | None = None) -> None:
        """Ask what has no row yet; a listener hears the reading of the longest length."""
        pending = [probe for probe in self.probes if self._key(probe) not in self.store.rows]
        for probe in pending:
            if probe.reason is not None:
                self._keep(probe, outcome="invalid", reason=probe.reason)
        if listener is None and all(probe.reason is not None for probe in pending):
            return
        with patched_as(model, self.variant):
            by_length, at_once = length_dependent(model), switches_rope(model)
            if by_length or at_once:
                share = "no prompt shares a reading" if at_once else "each length is read by itself"
                logger.info("%s: RoPE depends on the length, so %s", self.variant.name, share)
            per_length = by_length or self.grid.mode == "single"
            afresh = self.exact or at_once
            groups = group(self.probes, exact=afresh, per_length=per_length)
            spent = spent_tokens(groups)
            stops = stop_ids(model, self.grid.codec.tokenizer)
            total = sum(spent[probe.length, probe.depth, probe.kind] for probe in pending if probe.reason is None)
            with self._bar(total) as advance:
                for members in groups:
                    held = held_length(model, members[0].length) if by_length else contextlib.nullcontext()
                    heard = listener if members is groups[-1] else None
                    chunk = members[-1].length if at_once else CHUNK
                    with held:
                        reader = Reader(model, chunk=chunk, on_tokens=advance, listener=heard)
                        # One at a time: a prompt of its own for every cell at once would fill the memory.
                        asked = [probe.afresh() for probe in members] if afresh else members
                        self._ask(reader, asked, spent, stops, through=heard is not None)

    def _ask(
        self,
        reader: Reader,
        members: Sequence[Probe],
        spent: Mapping[tuple[int, float | None, str], int],
        stops: frozenset[int],
        *,
        through: bool,
    ) -> None:
        import torch

        codec = self.grid.codec
        started = time.perf_counter()
        try:
            for index, reply in ask_all(
                reader,
                members[-1].trunk,
                [probe.branch() for probe in members],
                wanted=lambda index: self._key(members[index]) not in self.store.rows,
                decode=codec.decode,
                stops=stops,
                one_sentence=self.grid.prompt.prefixed,
                through=through,
            ):
                probe, now = members[index], time.perf_counter()
                self._keep(
                    probe,
                    outcome="hit" if is_hit(reply.text, probe.needle) else "miss",
                    answer=reply.text,
                    first_logit_top=int(reply.first_logits.argmax()),
                    prefill_tokens=spent[probe.length, probe.depth, probe.kind],
                    seconds=round(now - started, 3),
                )
                started = now
        except torch.OutOfMemoryError as error:
            # Running out of memory is a result: this length and those behind it cannot be read on this machine.
            logger.warning("%s: out of memory: %s", self.variant.name, error)
            for probe in members:
                if self._key(probe) not in self.store.rows:
                    self._keep(probe, outcome="invalid", reason="out of memory")

    def _key(self, probe: Probe) -> tuple[str, int, int, float | None, str]:
        return self.variant.name, self.trial, probe.length, probe.depth, probe.kind

    def _keep(self, probe: Probe, *, outcome: str, reason: str | None = None, **found: Any) -> None:
        row: dict[str, Any] = {
            "variant": self.variant.name,
            "trial": self.trial,
            "length": probe.length,
            "depth": probe.depth,
            "kind": probe.kind,
            "outcome": outcome,
            "reason": reason,
            "expected": probe.needle.value,
            "answer": None,
            "question": probe.needle.question,
            "relation": probe.needle.relation,
            "context": probe.excerpt(self.grid.codec),
            "tokens": probe.length if probe.reason is None else None,
            "needle_at": probe.needle_at,
            "first_logit_top": None,
            "prefill_tokens": 0,
            "prompt_tokens": probe.at + len(probe.rest),
            "seconds": 0.0,
        }
        if control_of(row) == WRONG_KEY:
            row["lone"] = probe.lone
        row.update(found)
        self.store.add_row(row)
        if self.on_row is not None:
            self.on_row(row)

    @contextlib.contextmanager
    def _bar(self, total: int) -> Iterator[Callable[[int], object]]:
        from tqdm import tqdm

        label = self.variant.name if self.trial == 0 else f"{self.variant.name} #{self.trial + 1}"
        quiet = not (self.progress and sys.stderr.isatty())
        with tqdm(total=total, desc=label, unit="tok", unit_scale=True, leave=False, disable=quiet) as bar:
            yield bar.update
