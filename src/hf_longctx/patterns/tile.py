"""The tile: a batch of equal dense problems that an engine can see through strided views."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass, replace

import torch
from torch import Tensor

from hf_longctx.patterns.geometry import Blocks, Drawn, Own, Shape, Strip, unwindowed


@dataclass(frozen=True)
class Tile:
    """A batch of copies x count equal dense problems.

    Row i of problem (c, t) is row + c + t*step + i*spacing, and its key j is key + c + t*step + j*spacing, or
    picks[t, j]. It sees the key where low <= i - j < high (None leaves that side open), where `only` holds, and where
    no shape of `minus` does.

    Attributes:
        row: first row, counted from the run's first row.
        rows: rows in one problem.
        key: first key, counted from the span's first key.
        keys: keys in one problem.
        count: number of problems that follow one another.
        low: smallest i - j that is seen.
        high: one past the largest i - j that is seen.
        step: by how many rows and keys one problem follows the other; rows * spacing if 0.
        spacing: distance between neighbouring rows, and keys, of a problem.
        copies: how often all this is repeated, each time one row and one key further.
        only: a shape that must hold.
        minus: shapes that must not hold.
        picks: (count, keys) int64 keys counted from the span's first, -1 for filling, in place of regular ones.
        run: picks come in runs of so many neighbours from a multiple of it on; each run is whole or filling.
    """

    row: int
    rows: int
    key: int
    keys: int
    count: int = 1
    low: int | None = None
    high: int | None = None
    step: int = 0
    spacing: int = 1
    copies: int = 1
    only: Shape | None = None
    minus: tuple[Shape, ...] = ()
    picks: Tensor | None = field(default=None, repr=False, compare=False)
    run: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "step", self.step or self.rows * self.spacing)

    @property
    def problems(self) -> int:
        """How many problems there are."""
        return self.count * self.copies

    @property
    def regular(self) -> bool:
        """Whether distances and keys follow from the indices alone."""
        return self.only is None and not self.minus and self.picks is None

    @property
    def whole(self) -> bool:
        """Whether every row sees every key."""
        return self.low is None and self.high is None and self.regular

    @property
    def causal(self) -> bool:
        """Whether this is the lower triangle of a square, diagonal included."""
        return self.low == 0 and self.high is None and self.rows == self.keys and self.regular

    @property
    def shared(self) -> bool:
        """Whether all problems see the same pairs, so that one mask serves all."""
        if self.problems == 1 or self.regular:
            return True
        return self.picks is None and all(self._follows(s) for s in (self.only, *self.minus) if s is not None)

    def _follows(self, shape: Shape) -> bool:
        """Whether the shape is the same for every problem."""
        align = shape.align
        along = self.count == 1 or (align > 0 and self.step % align == 0)
        across = self.copies == 1 or align == 1 or (align > 0 and align % self.spacing == 0)
        return along and across

    def part(self, copy: int, copies: int, first: int, count: int) -> Tile:
        """The problems [first, first + count) of the copies [copy, copy + copies)."""
        shift = copy + first * self.step
        picks = None if self.picks is None else self.picks[first : first + count]
        return replace(self, row=self.row + shift, key=self.key + shift, count=count, copies=copies, picks=picks)

    def hiding(self, row: int, key: int) -> Tensor:
        """The problems with picked keys that may hide a pair, (n,) int64 on the CPU; the others certainly hide none.

        It looks at each key once, not at each pair. Arguments as in `seen`.
        """
        assert self.picks is not None
        hides = self.picks < 0
        first = row + self.row + self.step * torch.arange(self.count)[:, None]
        last = first + (self.rows - 1) * self.spacing
        for shape in self.minus:
            hides = hides | (shape.meets(first, last, key + self.picks) if isinstance(shape, Strip | Blocks) else True)
        return (hides.any(1) if self.only is None else hides.new_ones(self.count)).nonzero()[:, 0]

    def seen(self, row: int, key: int, *, device: torch.device | None = None, among: Tensor | None = None) -> Tensor:
        """Which rows see which keys: bool (rows, keys) if `shared`, else (problems, rows, keys).

        Args:
            row: logical position of the run's first row.
            key: logical position of the span's first key.
            device: where to make it, the CPU if None.
            among: the problems to look at where they are not `shared`, (n,) int64; all if None.
        """
        i, j = torch.arange(self.rows, device=device)[:, None], torch.arange(self.keys, device=device)
        seen = torch.ones(self.rows, self.keys, dtype=torch.bool, device=device)
        if self.low is not None:
            seen &= i - j >= self.low
        if self.high is not None:
            seen &= i - j < self.high
        if self.regular:
            return seen
        shift = torch.zeros(1, dtype=torch.int64, device=device)
        if not self.shared:
            copies, counts = (torch.arange(n, device=device) for n in (self.copies, self.count))
            shift = (copies[:, None] + self.step * counts).flatten()
            shift = shift if among is None else shift[among.to(shift.device)]
        q = row + self.row + shift[:, None, None] + i * self.spacing
        if self.picks is None:
            k = key + self.key + shift[:, None, None] + j * self.spacing
        else:
            picks = (self.picks if among is None or self.shared else self.picks[among]).to(device or self.picks.device)
            seen = seen & (picks >= 0)[:, None]
            k = key + picks.clamp(min=0)[:, None]
        last = max(row + self.row, key + self.key) + self.copies + self.count * self.step
        last += self.spacing * max(self.rows, self.keys)
        if self.only is not None:
            seen = seen & _holds(self.only, q, k, last)
        for other in self.minus:
            seen = seen & ~_holds(other, q, k, last)
        return seen[0] if self.shared and seen.dim() == 3 else seen


def _holds(shape: Shape, q: Tensor, k: Tensor, last: int) -> Tensor:
    """`shape.holds`, in int32 where only our own arithmetic is asked, of small numbers: tables of many are large."""
    narrow = not isinstance(unwindowed(shape), Own | Drawn) and max(last, _largest(shape)) < 1 << 31
    return shape.holds(q.int(), k.int()) if narrow else shape.holds(q, k)


def _largest(shape: Shape) -> int:
    """The largest number in a shape's definition."""
    values = [getattr(shape, f.name) for f in fields(shape)]
    return max(_largest(x) if is_dataclass(x) else x or 0 for x in values)  # type: ignore[arg-type]
