"""Placement: each checkpoint holds its depths, needles stand between sentences and end in time."""

import itertools
import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hf_longctx.measure.placement import depth_grid, lay, place, shared_slots


@given(
    st.sets(st.integers(200, 4000), min_size=1, max_size=5),
    st.integers(1, 11),
    st.integers(5, 25),
    st.integers(0, 10**6),
)
def test_every_cell_has_its_needle_near_its_depth_and_within_its_length(rooms, depths, size, seed):
    # Crammed needles may not fit, and are then refused as invalid by the grid.
    assume(2 * depths * size * len(rooms) <= min(rooms))
    rng = random.Random(seed)
    grid = depth_grid(depths)
    slots = shared_slots({room: room for room in rooms}, grid, size)
    assert sorted(cell for slot in slots for cell in slot.cells) == sorted(itertools.product(rooms, grid))
    needles = [[-1 - index] * rng.randint(max(1, size - 5), size) for index in range(len(slots))]
    lengths = [rng.randint(3, 40) for _ in range(5000)]
    ids, placed = place(iter([[n] * n for n in lengths]), slots, needles, max(rooms))
    assert len(ids) == max(rooms)
    for slot, needle, spot in zip(slots, needles, placed):
        assert ids[spot.at : spot.at + len(needle)] == needle
        for room, depth in slot.cells:
            assert spot.at + len(needle) <= room
            # At most a sentence before its place, or some needles behind it.
            assert abs(spot.at - depth * (room - size)) <= 0.04 * room + 40 + size * 3
    text = [token for token in ids if token > 0]
    assert text == [n for n in lengths for _ in range(n)][: len(text)]


def test_needles_stand_between_sentences():
    slots = shared_slots({90: 90}, depth_grid(4), 3)
    ids, placed = place(iter([[1, 0, 0, 0, 2]] * 99), slots, [[7, 7, 7]] * 4, 90)
    for spot in placed:
        assert spot.at == 0 or ids[spot.at - 1] in (2, 7)


def test_equal_places_share_a_needle():
    slots = shared_slots({1000: 1000, 2000: 2000, 4000: 4000}, depth_grid(5), 10)
    assert slots[0].cells == ((1000, 0.0), (2000, 0.0), (4000, 0.0))
    assert len(slots) < 15


def test_a_length_without_room_has_no_cell():
    assert shared_slots({100: 5, 200: 105}, (0.5,), 10)[0].cells == ((200, 0.5),)


def test_lay_marks_where_sentences_begin():
    ids, starts = lay(iter([[1, 2], [1, 2, 3], [1]] * 9), 10)
    assert len(ids) == 10
    assert [ids[start] for start in starts] == [1] * len(starts)


@pytest.mark.parametrize("depths", [0, -1, [], [1.5], [-0.1, 0.5], "5", True])
def test_depths_that_are_none_are_refused(depths):
    with pytest.raises(ValueError, match="depths="):
        depth_grid(depths)
