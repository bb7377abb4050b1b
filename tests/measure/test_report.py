"""The report of a run: what it says, and that it says it of any run."""

import base64
import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_longctx.measure import heatmap, page, runs, stats
from hf_longctx.measure.report import finding, load, write
from hf_longctx.measure.sections import misses
from hf_longctx.measure.terminal_table import terminal_table
from page_reader import read
from run_folders import HOSTILE, LENGTHS, VARIANTS, make_row, make_rows, make_summary, save


@pytest.fixture
def run(tmp_path):
    rows = list(make_rows())
    return save(tmp_path / "run", rows, make_summary(rows))


# The files


def test_writes_page_and_picture_and_nothing_else(run):
    before = {path.name for path in run.iterdir()}
    assert write(run) == [run / "report.html", run / "heatmap.png"]
    assert {path.name for path in run.iterdir()} - before == {"report.html", "heatmap.png"}
    assert (run / "heatmap.png").read_bytes().startswith(b"\x89PNG")


def test_a_failure_while_writing_keeps_the_old_file(tmp_path):
    target = tmp_path / "report.html"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="disk"), heatmap.replacing(target) as partial:  # noqa: PT012
        partial.write_text("half")
        raise RuntimeError("disk")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert target.read_text() == "old"


def test_the_numbers_come_from_the_rows_not_from_an_old_summary(tmp_path):
    rows = list(make_rows())
    stale = make_summary(rows[:3])
    summary, found = load(save(tmp_path / "run", rows, stale))
    assert len(found) == len(rows)
    assert {name: entry["cells"] for name, entry in summary["variants"].items()} == {
        name: entry["cells"] for name, entry in stats.summarise(rows, claimed={}).items()
    }
    assert summary["variants"]["yarn2"]["claimed"] == 16384


def test_a_run_killed_before_its_first_summary_is_reported_from_its_start_record(tmp_path):
    rows = list(make_rows(["stock"], [1024]))
    folder = save(tmp_path / "run", rows, None)
    started = {"settings": {"model": "a-model"}, "variants": {"stock": {"claimed": 8192, "definition": {}}}}
    (folder / "run.json").write_text(json.dumps(started))
    summary, _ = load(folder)
    assert (summary["model"], summary["variants"]["stock"]["claimed"]) == ("a-model", 8192)
    (folder / "run.json").unlink()
    assert load(folder)[0]["variants"]["stock"]["claimed"] is None
    assert "stock" in read(folder).words


def test_a_torn_last_line_is_dropped_and_a_broken_one_before_it_is_refused(run):
    whole = load(run)[1]
    with (run / "rows.jsonl").open("a") as file:
        file.write('{"variant": "sto')
    assert load(run)[1] == whole
    with (run / "rows.jsonl").open("a") as file:
        file.write("\n" + json.dumps(whole[0]) + "\n")
    with pytest.raises(ValueError, match=f"line {len(whole) + 1}: not JSON"):
        load(run)


@pytest.mark.parametrize("state", ["no folder", "no rows.jsonl", "no row yet"])
def test_a_folder_that_is_no_run_is_refused_by_name(tmp_path, state):
    folder = tmp_path / "nothing"
    if state != "no folder":
        folder.mkdir()
    if state == "no row yet":
        (folder / "rows.jsonl").touch()
    with pytest.raises(ValueError, match="nothing") as caught:
        write(folder)
    assert {"no folder": "no such folder"}.get(state, state) in str(caught.value)


def test_the_command_prints_both_paths(run):
    import typer
    from typer.testing import CliRunner

    from hf_longctx.cli.report import report

    app = typer.Typer()
    app.command()(report)
    shown = CliRunner().invoke(app, [str(run)])
    assert shown.output.split() == [str(run / "report.html"), str(run / "heatmap.png")]
    refused = CliRunner().invoke(app, [str(run / "elsewhere")])
    assert isinstance(refused.exception, ValueError)


# The page


def test_the_page_needs_no_other_file_and_runs_no_script_but_its_own(run):
    found = read(run)
    for _, attributes in found.elements:
        assert all(attributes[key].startswith(("data:", "#")) for key in ("src", "href") if key in attributes)
    html = page.render(runs.read(run))
    css = html.split("<style>")[1].split("</style>")[0]
    assert "url(" not in css
    assert "@import" not in css
    assert found.all("script") == [{}]
    policy = found.all("meta")[1]["content"]
    assert "default-src 'none'" in policy
    script = html.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert any("width=device-width" in meta.get("content", "") for meta in found.all("meta"))


def test_headings_table_headers_and_pictures_are_labelled(run):
    found = read(run)
    assert len(found.all("h1")) == 1
    assert all(header.get("scope") in ("row", "col") for header in found.all("th"))
    assert all(svg.get("aria-label") for svg in found.all("svg"))
    assert found.all("html")[0]["lang"] == "en"


def test_everything_a_reader_needs_is_on_the_page(run):
    words = read(run).words
    summary, _ = load(run)
    for expected in (
        "a-model",
        finding(summary),
        "distinct facts that share one context",
        "rope=yarn:2",
        "window:1024+global:4",
        "claims 16K",
        "hf-longctx needle demo",
        "96.2%",
        "12,288",
        "123,456",
        "8.0 GiB",
        "0 to 3",
        "unbounded",
        "7654321",
    ):
        assert expected in words, expected


def test_hostile_text_stays_text(tmp_path):
    rows = list(make_rows(text=HOSTILE))
    rows += [make_row("stock", 1024, None, "invalid", kind="control", text=HOSTILE)]
    summary = make_summary(rows, model=HOSTILE, command=HOSTILE, versions={HOSTILE: HOSTILE})
    summary["haystack"]["label"] = HOSTILE
    summary["variants"]["stock"]["definition"] = {"rope": HOSTILE}
    summary["variants"]["stock"]["plan"] = {HOSTILE: HOSTILE, "layers": [{"index": 0, HOSTILE: HOSTILE}]}
    folder = save(tmp_path / "run", rows, summary)
    found = read(folder)
    assert found.all("script") == [{}]
    assert not found.all("img")
    assert not [key for _, attributes in found.elements for key in attributes if key.startswith("on")]
    assert "{{ 7 * 7 }} ☃ 針" in found.words


def test_each_miss_shows_its_needle_marked_and_long_lists_say_what_they_leave_out(tmp_path):
    rows = [make_row("stock", 1024, 0.5, "miss", trial=trial) for trial in range(misses.MAX_SHOWN + 7)]
    folder = save(tmp_path / "run", rows, make_summary(rows, ["stock"]))
    assert len(read(folder).all("mark")) == misses.MAX_SHOWN
    assert "And 7 more in" in read(folder).words


def test_hits_and_controls_are_no_failures(tmp_path):
    rows = [make_row("stock", 1024, 0.5, "hit"), make_row("stock", 1024, None, "miss", kind="control")]
    folder = save(tmp_path / "run", rows, make_summary(rows, ["stock"]))
    assert "Nothing was missed." in read(folder).words


def test_invalid_probes_are_told_apart_from_misses(tmp_path):
    rows = [make_row("stock", 1024, 0.5, "invalid"), make_row("stock", 2048, 0.5, "hit")]
    folder = save(tmp_path / "run", rows, make_summary(rows, ["stock"]))
    words = read(folder).words
    assert "Reason: out of memory" in words
    assert "Nothing was missed." in words


def test_an_unfinished_run_says_so_and_leaves_blanks(tmp_path):
    rows = list(make_rows(["stock"])) + list(make_rows(["yarn2"], LENGTHS[:2]))
    folder = save(tmp_path / "run", rows, make_summary(rows))
    found = read(folder)
    assert "Unfinished run. 35 of 75 cells" in found.words
    assert sum("blank" in cell.get("class", "") for cell in found.all("td")) == 40
    assert "yarn2 and window have no score there" in found.words


def test_a_control_that_was_answered_is_the_first_thing_said(tmp_path):
    rows = list(make_rows(["stock"])) + [make_row("stock", n, None, "hit", kind="control", trial=1) for n in LENGTHS]
    folder = save(tmp_path / "run", rows, make_summary(rows, ["stock"]))
    assert "cannot be trusted" in read(folder).words
    assert "it names values that were never planted, so its score cannot be trusted" in finding(load(folder)[0])


def test_a_pattern_that_is_not_loaded_costs_its_picture_only(tmp_path, caplog):
    rows = list(make_rows(["stock"]))
    summary = make_summary(rows, ["stock"])
    summary["variants"]["stock"]["definition"] = {"attention": "zigzag-of-mine:3"}
    save(tmp_path / "run", rows, summary)
    assert "zigzag-of-mine:3" in read(tmp_path / "run").words
    assert "no picture" in caplog.text


outcomes = st.sampled_from(["hit", "miss", "invalid"])
some_rows = st.lists(
    st.builds(
        make_row,
        st.sampled_from(list(VARIANTS)),
        st.sampled_from([512, 1000, 8192, 1 << 20]),
        st.sampled_from([0.0, 0.5, 1.0]),
        outcomes,
    ),
    max_size=30,
)


@settings(max_examples=25, deadline=None)
@given(some_rows)
def test_any_set_of_rows_makes_a_page_a_table_and_a_sentence(rows):
    summary = make_summary(rows, settings={})
    html = page.render(runs.Run("a run", (runs.recall(summary, rows),), summary))
    assert html.count('<table class="map"') in (0, len(VARIANTS))
    said = finding(summary)
    assert said.endswith(".")
    assert said[0].isupper()
    assert terminal_table(summary).row_count == len(VARIANTS)
