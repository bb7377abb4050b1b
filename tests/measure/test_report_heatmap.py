"""The picture of a run, and colours that everyone can tell apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_longctx.measure import heatmap
from run_folders import make_row, make_rows, make_summary


@pytest.mark.parametrize("names", [["stock"], ["stock", "yarn2"], ["stock", "yarn2", "window"]])
def test_the_picture_has_readme_width_and_shows_hits_and_misses(tmp_path, names):
    from matplotlib.image import imread

    rows = list(make_rows(names))
    heatmap.draw(make_summary(rows, names), tmp_path / "map.png")
    pixels = (imread(tmp_path / "map.png")[:, :, :3] * 255).round().astype(int)
    assert pixels.shape[1] == 1800
    seen = {tuple(pixel) for line in pixels[::7, ::7] for pixel in line.tolist()}
    assert heatmap.SCALE[0] in seen
    assert heatmap.SCALE[-1] in seen


def test_a_large_grid_and_odd_names_are_drawn(tmp_path):
    rows = [make_row("stock", 512 * (i + 1), d / 23, "hit") for i in range(24) for d in range(24)]
    summary = make_summary(rows, ["stock"], settings={})
    summary["variants"]["stock"]["definition"] = {"rope": "$\\frac{" + "x" * 200}
    heatmap.draw(summary, tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 10_000


@given(st.floats(0, 1))
def test_cell_text_can_be_read_on_every_colour(recall):
    fill = heatmap.colour(recall)
    assert heatmap.contrast(heatmap.ink(fill), fill) >= 4.5


def test_found_and_lost_differ_without_the_red_green_channel():
    """To a deuteranope red and green are one channel (Viénot, Brettel and Mollon 1999); the ends stay apart in it."""

    def seen(rgb):
        r, g, b = ((c / 255) ** 2.2 for c in rgb)
        yellow = 0.29275 * r + 0.70725 * g
        return yellow, -0.02234 * r + 0.02234 * g + b

    (lost_yellow, lost_blue), (found_yellow, found_blue) = seen(heatmap.SCALE[0]), seen(heatmap.SCALE[-1])
    assert found_yellow / lost_yellow > 2.5
    assert found_blue / lost_blue > 2.5


@given(st.integers(1, 1 << 24), st.integers(1, 1 << 24))
def test_no_two_lengths_share_a_label(first, second):
    assert (heatmap.length_label(first) == heatmap.length_label(second)) is (first == second)
