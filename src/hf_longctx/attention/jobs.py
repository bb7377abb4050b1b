"""From the tokens of a call to the tiled engine's jobs: runs of contiguous real tokens, and what each may see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_longctx.attention.layout import Layout


@dataclass(frozen=True)
class _Span:
    """Stored tokens [start, stop) of one document at consecutive logical positions from `position`."""

    start: int
    stop: int
    position: int
    document: int

    def logical(self, start: int | None = None) -> tuple[int, int]:
        """First and one past the last logical position, from stored token `start` on."""
        first = self.start if start is None else start
        return self.position + first - self.start, self.position + self.stop - self.start


@dataclass(frozen=True)
class Job:
    """The rows [row, row + rows) of one batch element against the spans of keys that they may see.

    Each of `spans` is the first stored key and the logical ranges of rows and keys.
    """

    batch: int
    row: int
    rows: int
    spans: tuple[tuple[int, tuple[int, int], tuple[int, int]], ...]


def all_jobs(layout: Layout, batch: int) -> tuple[Job, ...] | None:
    """The jobs of all rows of the batch; None where one has padding between real tokens."""
    first = layout.keys - layout.queries
    if layout.plain:
        span = _Span(0, layout.keys, 0, 0)
        return tuple(job for b in range(batch) for job in _jobs(b, [span], first))
    positions, documents = _tables(layout)
    if any(_holed(p) for p in positions):
        return None
    rows = [_spans(*_row(positions, documents, b)) for b in range(layout.batch)]
    return tuple(job for b in range(batch) for job in _jobs(b, rows[b % len(rows)], first))


def real_tokens(layout: Layout, batch: int, device: torch.device) -> list[tuple[Tensor, Tensor, tuple[Job, ...]]]:
    """For each row of the batch: its real tokens, those of them that are queries, and the jobs among them."""
    found = []
    first, (positions, documents) = layout.keys - layout.queries, _tables(layout)
    for b in range(batch):
        p, d = _row(positions, documents, b)
        real = (p >= 0).nonzero()[:, 0]
        here = real[real >= first] - first
        spans = _spans(p[real], None if d is None else d[real])
        found.append((real.to(device), here.to(device), tuple(_jobs(0, spans, len(real) - len(here)))))
    return found


def _tables(layout: Layout) -> tuple[Tensor, Tensor | None]:
    """Positions and documents on the CPU."""
    near = layout.near()
    return torch.arange(layout.keys)[None] if near.positions is None else near.positions, near.documents


def _row(positions: Tensor, documents: Tensor | None, batch: int) -> tuple[Tensor, Tensor | None]:
    return positions[batch % len(positions)], None if documents is None else documents[batch % len(documents)]


def _holed(positions: Tensor) -> bool:
    """Whether there is padding between real tokens of positions (Lk,)."""
    real = (positions >= 0).nonzero()[:, 0]
    return len(real) > 0 and int(real[-1] - real[0]) + 1 != len(real)


def _spans(positions: Tensor, documents: Tensor | None) -> list[_Span]:
    """The maximal runs of real tokens at consecutive positions of one document; positions and documents (Lk,)."""
    real = positions >= 0
    new = real.clone()
    new[1:] &= ~(real[:-1] & (positions[1:] == positions[:-1] + 1))
    if documents is not None:
        new[1:] |= real[1:] & (documents[1:] != documents[:-1])
    starts = new.nonzero()[:, 0].tolist()
    end = int(real.nonzero()[-1]) + 1 if starts else 0
    number = documents if documents is not None else torch.zeros_like(positions)
    return [
        _Span(start, stop, int(positions[start]), int(number[start]))
        for start, stop in zip(starts, [*starts[1:], end])
    ]


def _jobs(batch: int, spans: list[_Span], first: int) -> Iterator[Job]:
    """One job for each span that holds queries; queries are the stored tokens from `first` on."""
    for own in spans:
        start = max(own.start, first)
        if start < own.stop:
            rows = own.logical(start)
            seen = tuple((s.start, rows, s.logical()) for s in spans if s.document == own.document)
            yield Job(batch, start - first, own.stop - start, seen)
