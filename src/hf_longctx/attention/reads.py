"""Which of the stored keys a few query rows read, worked out from the pattern and the places of the tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hf_longctx.attention.dense import Sight
from hf_longctx.attention.layout import Layout
from hf_longctx.patterns import Pattern
from hf_longctx.patterns.rows import Rows, within

#: Slices up to which each is read where it is, on a CPU; more are copied together first.
_IN_PLACE = 4
#: What a key costs that is copied first, or lies apart from its neighbours, over one among its neighbours. Measured on
#: CPU with 3 heads of 64 at 32K keys: 2.5 for 8192 keys copied, 2.6 for 4096 through a stride of 8.
_COPY = 2.5
#: Runs of consecutive positions in which the stored keys may lie, to be found one by one.
_RUNS = 16
#: Pairs of row and key that are tried at once, where only a pattern's rule is known.
_PAIRS = 1 << 24

#: Stored keys: disjoint slices, or their numbers, (S,) int64.
Stored: TypeAlias = tuple[slice, ...] | Tensor


def in_place(device: torch.device) -> int:
    """Slices up to which one row reads each where it is.

    On a GPU one: a call for each takes longer there than copying, and the kernel for parts leaves all keys of a head
    to one of its processors.
    """
    return _IN_PLACE if device.type == "cpu" else 1


@dataclass(frozen=True)
class Reads:
    """What to read of the stored keys.

    Attributes:
        slices: disjoint slices, the same for all rows of the batch and all heads, where there is no `index`.
        index: (B or 1, Hkv or 1, S) int64 numbers of the stored keys; where rows see fewer, some come again.
        sight: which query row sees which of these keys.
        loose: whether unseen keys are read too, because to copy the seen ones would cost more. Only on the CPU: it
            takes a look at what comes out, for which a device would make the host wait in every layer.
    """

    slices: tuple[slice, ...] = ()
    index: Tensor | None = None
    sight: Sight = Sight()
    loose: bool = False


def reads(pattern: Pattern, layout: Layout, device: torch.device, *, layer: int, heads: range) -> Reads | None:
    """What to read.

    Args:
        pattern: the rule.
        layout: where the tokens are.
        device: where the queries are.
        layer: index of the layer.
        heads: the key-value heads, where they differ, else the first alone.

    Returns:
        None where a pattern known by its rule alone would take too much memory to look at.
    """
    found = _by_rows(pattern, layout, layer, heads)
    if found is None:
        found = _by_rule(pattern, layout.near(), layer, heads)
    if found is None:
        return None
    sizes = [len(x) if isinstance(x, Tensor) else sum(len(_range(s)) for s in x) for x in found]
    if not max(sizes):
        return Reads()
    one = found[0] if len(found) == 1 and isinstance(found[0], tuple) else None

    cost = _COPY * max(sizes)
    if one is not None and (len(one) == 1 or (layout.queries == 1 and len(one) <= in_place(device))):
        cost = sum(len(_range(s)) * (1 if s.step == 1 else _COPY) for s in one)
    low, high = _ends(found)
    whole = min(sizes) == high - low
    if high - low < cost and (whole or device.type == "cpu"):
        sight = Sight() if whole and layout.queries == 1 else _sight(pattern, layout, (low, high), layer, heads)
        return Reads((slice(low, high),), sight=sight.to(device), loose=sight.unread is not None)

    listed = [_numbers(x) for x in found]
    at, index = listed[0][None, None], None
    if one is None:
        filled = pad_sequence(listed, batch_first=True, padding_value=-1)
        at = torch.where(filled < 0, filled[:, :1].clamp(min=0), filled).view(-1, len(heads), filled.shape[1])
        index = at.to(device)
    count = torch.tensor(sizes).view(-1, len(heads), 1, 1)
    real = torch.arange(at.shape[2]) < count if min(sizes) < max(sizes) else None
    if layout.queries == 1:  # it sees all that is listed
        sight = Sight() if real is None else Sight.of(real)
    else:
        sight = _sight(pattern, layout, at, layer, heads, real)
    return Reads(one or (), index, sight.to(device))


def _sight(
    pattern: Pattern,
    layout: Layout,
    keys: tuple[int, int] | Tensor,
    layer: int,
    heads: range,
    real: Tensor | None = None,
) -> Sight:
    """Who sees what of the keys that are read, less what is filling; looked at on the CPU."""
    near, here = layout.near(), torch.device("cpu")
    seen = near.visible(pattern, (0, layout.queries), keys, device=here, layer=layer, heads=heads)
    return Sight.of(seen if real is None else seen & real)


def _by_rows(pattern: Pattern, layout: Layout, layer: int, heads: range) -> list[Stored] | None:
    """For each different row of the batch, and each head: what it reads. None where it is not known that way."""
    if layout.documents is not None:
        return None
    if layout.positions is None:
        queries, places = [torch.arange(layout.keys - layout.queries, layout.keys)], [[(0, layout.keys, 0)]]
    else:
        known = layout.remember("places", lambda: _queries_and_places(layout))
        if known is None:
            return None
        queries, places = known
    found: list[Stored] = []
    for q, place in zip(queries, places):
        for head in heads:
            rows = pattern.rows(q, layer=layer, head=head)
            if rows is None:
                return None
            found.append(_stored(rows, place))
    return found


def _queries_and_places(layout: Layout) -> tuple[list[Tensor], list[list[tuple[int, int, int]]]] | None:
    """For each different row of the batch: the positions of its queries, and where its keys are; as plain numbers.

    All looks at where tokens are happen here, once for all layers and patterns.
    """
    table = layout.looked_at()
    if len(table) > 1 and bool((table == table[0]).all()):
        table = table[:1]
    places = _places(table)
    return None if places is None else ([q[q >= 0] for q in table[:, -layout.queries :].cpu()], places)


def _places(table: Tensor) -> list[list[tuple[int, int, int]]] | None:
    """The runs of consecutive positions in each row of `table` (B, Lk).

    Each is its first position, one past its last, and the shift from position to stored key. None where positions do
    not ascend after the padding, or there are many runs.
    """
    before, after = table[:, :-1], table[:, 1:]
    if not bool(((after > before) | (after < 0) & (before < 0)).all()):
        return None
    new = torch.ones_like(table, dtype=torch.bool)
    new[:, 1:] = (after != before + 1) | (before < 0)
    new &= table >= 0
    if int(new.sum(1).max()) > _RUNS:
        return None
    where = new.nonzero()
    firsts: list[list[int]] = [[] for _ in table]
    for row, at in where.cpu().tolist():
        firsts[row].append(at)
    starts = table[new].cpu().tolist()
    out, taken = [], 0
    for at in firsts:
        ends = [*at[1:], table.shape[1]]
        out.append([(p, p + b - a, a - p) for a, b, p in zip(at, ends, starts[taken:])])
        taken += len(at)
    return out


def _stored(rows: Rows, places: list[tuple[int, int, int]]) -> Stored:
    """The stored keys of positions that rows see."""
    runs = rows.slices()
    if runs is None:
        keys = rows.keys()
        parts = [keys[(keys >= low) & (keys < high)] + shift for low, high, shift in places]
        return torch.cat(parts or [keys[:0]])
    found = []
    for run in runs:
        for low, high, shift in places:
            part = within(run, low, high)
            if part:
                found.append(slice(part.start + shift, part.stop + shift, part.step))
    joined: list[slice] = []
    for s in sorted(found, key=lambda s: (s.step, s.start)):
        if joined and s.step == 1 == joined[-1].step and joined[-1].stop == s.start:
            s = slice(joined.pop().start, s.stop, 1)
        joined.append(s)
    return tuple(joined)


def _by_rule(pattern: Pattern, layout: Layout, layer: int, heads: range) -> list[Stored] | None:
    """The same by trying every key; None where that would take too much memory."""
    if layout.batch * len(heads) * layout.queries * layout.keys > _PAIRS:
        return None
    here = torch.device("cpu")
    seen = layout.visible(pattern, (0, layout.queries), (0, layout.keys), device=here, layer=layer, heads=heads)
    return [_as_slice(one.nonzero()[:, 0]) for one in seen.any(2).flatten(0, 1)]


def _as_slice(numbers: Tensor) -> Stored:
    """Ascending numbers as a slice, if they are one of consecutive keys."""
    if len(numbers) == 0:
        return ()
    first, last = int(numbers[0]), int(numbers[-1])
    return (slice(first, last + 1, 1),) if last - first + 1 == len(numbers) else numbers


def _range(s: slice) -> range:
    return range(s.start, s.stop, s.step)


def _numbers(stored: Stored) -> Tensor:
    if isinstance(stored, Tensor):
        return stored
    return torch.cat([torch.arange(s.start, s.stop, s.step) for s in stored] or [torch.arange(0)])


def _ends(found: list[Stored]) -> tuple[int, int]:
    """The first stored key that is read, and one past the last."""
    ends = []
    for stored in found:
        if isinstance(stored, Tensor):
            ends += [(int(stored[0]), int(stored[-1]) + 1)] if len(stored) else []
        else:
            ends += [(s.start, s.stop) for s in stored]
    return min(a for a, _ in ends), max(b for _, b in ends)
