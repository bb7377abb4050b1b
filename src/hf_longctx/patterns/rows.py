"""The visible keys of a batch of rows as data, and how many there are.

Every built-in pattern's row is a few runs of consecutive keys (spans) and a few combs (steps). Unions just list more
of them. Counting a row is then interval merging plus inclusion and exclusion over the combs: linear in the number of
rows, exact, and with nothing of size n x n. For the few rows of a decoding step `slices` names the keys themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """The keys that rows `q` see, before causality (which `count` applies).

    Attributes:
        q: logical positions of the rows, (R,) int64.
        spans: pairs (start, stop), each (R,): keys start <= k < stop.
        steps: pairs (stride, most): keys q, q - stride, q - 2 stride, ..., `most` of them: a number, or one for each
            row, (R,); None: down to 0.
    """

    q: Tensor
    spans: tuple[tuple[Tensor, Tensor], ...] = ()
    steps: tuple[tuple[int, int | Tensor | None], ...] = ()

    def __or__(self, other: Rows) -> Rows:
        """The keys that either sees, for the same rows."""
        return Rows(self.q, self.spans + other.spans, self.steps + other.steps)

    def within(self, window: int) -> Rows:
        """The keys among the last `window`, self included."""
        lowest = self.q - window + 1
        spans = tuple((torch.maximum(start, lowest), stop) for start, stop in self.spans)
        steps: list[tuple[int, int | Tensor | None]] = []
        for stride, most in self.steps:
            fit = -(-window // stride)
            fewer = fit if most is None else most.clamp(max=fit) if isinstance(most, Tensor) else min(most, fit)
            steps.append((stride, fewer))
        return Rows(self.q, spans, tuple(steps))

    def disjoint(self) -> list[tuple[Tensor, Tensor]]:
        """The spans cut to be causal, sorted and disjoint; each (start, stop), empty where start >= stop.

        >>> q = torch.tensor([9])
        >>> rows = Rows(q, ((q - 3, q + 1), (q * 0, q * 0 + 8)))
        >>> [(int(a), int(b)) for a, b in rows.disjoint()]
        [(0, 8), (8, 10)]
        """
        if not self.spans:
            return []
        start = torch.stack([a.expand_as(self.q) for a, _ in self.spans]).clamp(min=0)
        stop = torch.minimum(torch.stack([b.expand_as(self.q) for _, b in self.spans]), self.q + 1)
        start, order = start.sort(dim=0)
        stop = stop.gather(0, order)
        covered = torch.cat([torch.zeros_like(stop[:1]), stop.cummax(dim=0).values[:-1]])
        return list(zip(torch.maximum(start, covered), stop))

    def count(self) -> int:
        """How many (row, key) pairs there are in all."""
        spans = self.disjoint()
        total = sum(int((stop - start).clamp(min=0).sum()) for start, stop in spans)
        for size in range(1, len(self.steps) + 1):
            for chosen in combinations(self.steps, size):
                # Combs all start at the row itself, so the keys on several are again a comb.
                stride = math.lcm(*(s for s, _ in chosen))
                farthest = self.q.clone()
                for s, most in chosen:
                    if most is not None:
                        farthest = torch.minimum(farthest, torch.as_tensor((most - 1) * s).expand_as(self.q))
                on_comb = farthest // stride + 1
                for start, stop in spans:
                    # Distances d with q - stop < d <= q - start that are multiples of the stride, and no farther.
                    top = torch.minimum(self.q - start, farthest)
                    below = torch.div(self.q - stop, stride, rounding_mode="floor")
                    shared = torch.div(top, stride, rounding_mode="floor") - below
                    on_comb = on_comb - torch.where(stop > start, shared.clamp(min=0), 0)
                total += (-1) ** (size + 1) * int(on_comb.sum())
        return total

    # ------------------------------------------------------------------ the keys themselves, for few rows

    def slices(self) -> list[range] | None:
        """The keys that any of the rows sees, as disjoint ranges; None where combs of different strides meet.

        >>> q = torch.tensor([90, 91])
        >>> Rows(q, ((q - 3, q + 1), (q * 0, q * 0 + 2))).slices()
        [range(0, 2), range(87, 92)]
        >>> Rows(q[1:], ((q[1:] - 3, q[1:] + 1),), ((40, None),)).slices()
        [range(88, 92), range(11, 88, 40)]
        """
        held = self._ranges()
        spans = _joined(r for r in held if r.step == 1)
        combs = [r for r in held if r.step > 1]
        if len({r.step for r in combs}) > 1:
            return None
        edges = [0, *(e for r in spans for e in (r.start, r.stop)), None]
        out = list(spans)
        for residue in dict.fromkeys(r.start % r.step for r in combs):
            for comb in _joined(r for r in combs if r.start % r.step == residue):
                # What lies between the spans.
                for low, high in zip(edges[::2], edges[1::2]):
                    rest = within(comb, low or 0, comb.stop if high is None else high)
                    out += [rest] if rest else []
        return out

    def keys(self) -> Tensor:
        """The keys that any of the rows sees, (S,) int64, ascending."""
        held = self._ranges()
        low, high = min((r.start for r in held), default=0), max((r.stop for r in held), default=0)
        seen = torch.zeros(high - low, dtype=torch.bool)
        for r in held:
            seen[r.start - low : r.stop - low : r.step] = True
        return seen.nonzero()[:, 0] + low

    def _ranges(self) -> list[range]:
        """Every row's spans and combs, causal, as they come: they may overlap."""
        # Plain numbers: for so few rows the calls of torch would take longer than what they compute.
        rows = self.q.cpu().tolist()
        out = []
        for start, stop in self.spans:
            ends = zip(start.expand_as(self.q).cpu().tolist(), stop.expand_as(self.q).cpu().tolist(), rows)
            out += [range(max(a, 0), min(b, q + 1)) for a, b, q in ends]
        for stride, most in self.steps:
            counts = most.expand_as(self.q).cpu().tolist() if isinstance(most, Tensor) else [most] * len(rows)
            for q, count in zip(rows, counts):
                teeth = q // stride + 1 if count is None else min(count, q // stride + 1)
                first = q - (teeth - 1) * stride
                out.append(range(first, q + 1, stride) if teeth > 1 else range(q, q + teeth))
        return [r for r in out if r]


def within(run: range, low: int, high: int) -> range:
    """The part of an ascending range that lies in [low, high).

    >>> within(range(1, 20, 4), 5, 14)
    range(5, 14, 4)
    """
    start = run.start + max(0, -(-(low - run.start) // run.step)) * run.step
    return range(start, max(start, min(run.stop, high)), run.step)


def _joined(runs: Iterable[range]) -> list[range]:
    """Ranges of one step and one residue, sorted, and one where they touch."""
    out: list[range] = []
    for run in sorted(runs, key=lambda r: r.start):
        if out and run.start <= out[-1][-1] + run.step:
            run = range(out[-1].start, max(out[-1][-1], run[-1]) + 1, run.step)
            out.pop()
        out.append(run)
    return out
