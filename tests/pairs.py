"""Fewer combinations of many axes: every two values meet in the fast suite, and all of them under the `slow` mark."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from itertools import combinations, product

import pytest

Row = tuple[Hashable, ...]


def _pairs(row: Row) -> set[tuple[int, Hashable, int, Hashable]]:
    return {(i, row[i], j, row[j]) for i, j in combinations(range(len(row)), 2)}


def covering(rows: Iterable[Row]) -> list[Row]:
    """Some of the rows, such that any two values that are together in one of them are so in one that is left.

    Greedy, and the same every time: of all rows that which has the most new pairs.
    """
    pairs = {row: _pairs(row) for row in rows}
    missing, chosen = set().union(*pairs.values()), []
    gain = {row: len(have) for row, have in pairs.items()}
    while missing:
        # A row's gain only ever falls, so the old ones are upper bounds, and few need to be counted again.
        best, most = None, 0
        for row in sorted(gain, key=gain.__getitem__, reverse=True):
            if gain[row] <= most:
                break
            gain[row] = len(pairs[row] & missing)
            if gain[row] > most:
                best, most = row, gain[row]
        chosen.append(best)
        missing -= pairs[best]
    return chosen


def pairwise(*axes: Iterable[Hashable], rows: Iterable[Row] = ()) -> Iterator:
    """Parameters for `pytest.mark.parametrize`: the product of the axes (or `rows`), those beyond every pair slow."""
    rows = list(product(*axes) if axes else rows)
    fast = set(covering(rows))
    for row in rows:
        marks = () if row in fast else pytest.mark.slow
        yield pytest.param(*row, marks=marks, id="-".join(map(str, row)))
