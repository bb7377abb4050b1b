"""Two runs side by side."""

import json

import pytest
import typer
from typer.testing import CliRunner

from hf_longctx.cli.report import report
from hf_longctx.measure import compare_page, runs
from hf_longctx.measure.compare import compare
from run_folders import make_cost_rows, make_rows, make_summary, make_task_rows, make_task_summary, save, save_cost


def needle(path, rows, **settings):
    names = list(dict.fromkeys(row["variant"] for row in rows))
    summary = make_summary(rows, names)
    summary["settings"] |= {"seed": 0} | settings
    return save(path, rows, summary)


@pytest.fixture
def two(tmp_path):
    """The second run finds at 8K what the first loses."""
    rows = list(make_rows(["stock"], (4096, 8192)))
    better = [row | {"outcome": "hit"} if row["kind"] == "needle" else row for row in rows]
    return needle(tmp_path / "a", rows), needle(tmp_path / "b", better)


def both(folders):
    return compare(*map(runs.read, folders))


def test_the_same_prompts_are_paired(two):
    found = both(two)
    assert found["differ"] == []
    assert found["only"] == []
    short, long = found["recall"]
    assert (short["difference"], short["paired"]["p"]) == (0.0, 1.0)
    assert (long["difference"], long["paired"]["only_first"], long["paired"]["only_other"]) == (1.0, 0, 5)
    assert long["paired"]["p"] == pytest.approx(2 / 2**5)
    assert long["paired"]["low"] is None  # one trial says nothing of the spread
    rules = {line["rule"]: line for line in found["effective"]}
    assert rules["absolute"]["first"]["high"] == 8192
    assert rules["absolute"]["other"]["high"] is None


def test_another_seed_is_said_and_not_paired(two):
    a, b = two
    summary = json.loads((b / "summary.json").read_text())
    summary["settings"]["seed"] = 1
    summary["versions"]["torch"] = "9.9"
    (b / "summary.json").write_text(json.dumps(summary))
    found = both((a, b))
    assert {one["field"] for one in found["differ"]} == {"seed", "versions torch"}
    assert all(line["paired"] is None and "seed" in line["unpaired"] for line in found["recall"])


def test_a_prompt_that_is_not_the_same_is_left_out(two):
    a, b = two
    lines = [json.loads(line) for line in (b / "rows.jsonl").read_text().splitlines()]
    lines[-2]["question"] = "something else?"
    (b / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [line["paired"]["prompts"] for line in both((a, b))["recall"]] == [5, 4]


def test_a_variant_that_means_something_else_is_said(tmp_path):
    rows = list(make_rows(["window"], (4096,)))
    a, b = needle(tmp_path / "a", rows), needle(tmp_path / "b", rows)
    summary = json.loads((b / "summary.json").read_text())
    summary["variants"]["window"]["definition"] = {"attention": "window:7"}
    (b / "summary.json").write_text(json.dumps(summary))
    assert [one["field"] for one in both((a, b))["differ"]] == ["variant window definition"]


def test_tasks_and_costs_are_compared(tmp_path):
    for name, trials in (("a", 4), ("b", 6)):
        save(tmp_path / name, make_task_rows(trials=trials), make_task_summary())
    slow = [row | {"peak_bytes": 2 * row["peak_bytes"]} if row["outcome"] == "ok" else row for row in make_cost_rows()]
    save_cost(tmp_path / "a", make_cost_rows())
    save_cost(tmp_path / "b", slow, variants=("standard", "stock", "window"))
    found = both((tmp_path / "a", tmp_path / "b"))
    assert [line["paired"]["prompts"] for line in found["recall"]] == [8] * 4
    ratios = {line["figures"]["peak_bytes"]["ratio"] for line in found["cost"]}
    assert ratios == {2.0, None}
    (failed,) = [line for line in found["cost"] if line["figures"]["peak_bytes"]["ratio"] is None]
    assert failed["outcomes"] == ["oom", "oom"]
    html = tmp_path / "page.html"
    compare_page.write(found, html)
    assert "x2.00" in html.read_text()
    assert "out of memory" in html.read_text()


def test_runs_without_anything_in_common_are_refused(two, tmp_path):
    cost = save_cost(tmp_path / "cost", make_cost_rows())
    with pytest.raises(ValueError, match="nothing in common"):
        both((two[0], cost))


def run_command(*arguments):
    app = typer.Typer()
    app.command()(report)
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_the_command_shows_the_differences_and_writes_a_page(two):
    a, b = two
    shown = run_command(a, b)
    assert shown.exit_code == 0, shown.output
    assert "+100" in shown.output
    assert "0.062" in shown.output
    page = (b / "comparison.html").read_text()
    assert "Both runs have the same settings" in page
    assert not (a / "comparison.html").exists()
    document = json.loads(run_command(a, b, "--json", "--page", a.parent / "c.html").output)
    assert document["recall"][1]["difference"] == 1.0
    assert (a.parent / "c.html").is_file()


@pytest.mark.parametrize("wrong", ["overlay", "page", "folder"])
def test_options_that_do_not_fit_are_refused(two, wrong):
    a, b = two
    given = {
        "overlay": (a, b, "--overlay", "Yi 34B"),
        "page": (a, "--page", a / "x.html"),
        "folder": (a, b, "--page", a / "nowhere" / "x.html"),
    }[wrong]
    assert isinstance(run_command(*given).exception, ValueError)


def test_hostile_names_stay_text(tmp_path):
    from page_reader import Reader
    from run_folders import HOSTILE

    rows = [row | {"variant": HOSTILE} for row in make_rows(["stock"], (1024,))]
    for name in ("a", "b"):
        save(tmp_path / name, rows, {"model": f"{name} {HOSTILE}", "variants": {HOSTILE: {"claimed": 1024}}})
    compare_page.write(both((tmp_path / "a", tmp_path / "b")), tmp_path / "page.html")
    found = Reader((tmp_path / "page.html").read_text())
    assert found.all("script") == [{}]
    assert not found.all("img")
    assert not [key for _, attributes in found.elements for key in attributes if key.startswith("on")]


def test_one_run_as_json(two):
    document = json.loads(run_command(two[0], "--json").output)
    assert document["written"] == [str(two[0] / "report.html"), str(two[0] / "heatmap.png")]
    assert document["parts"]["needle"]["variants"]["stock"]["lengths"][1]["hits"] == 0
