"""The page of every kind of run, and its parts."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_longctx.hf.architecture import architecture
from hf_longctx.measure import page, plot, runs, sections
from hf_longctx.measure.cost_model import FLASH, STANDARD
from hf_longctx.measure.cost_model import cost as cost_of
from hf_longctx.measure.machines import machine
from hf_longctx.measure.public_models import known_config
from hf_longctx.measure.published import one_model, published
from hf_longctx.measure.report import write
from hf_longctx.measure.sections import cost, pareto, wall
from page_reader import read
from run_folders import (
    HOSTILE,
    make_cost_rows,
    make_row,
    make_rows,
    make_summary,
    make_task_rows,
    make_task_summary,
    save,
    save_cost,
    save_suite,
)

ALWAYS = ["again"]
NAMES = ("maps", "curves", "effective", "pairs", "control", "misses", "plans", "spent")


def tasks_folder(path, **options):
    return save(path, make_task_rows(**options), make_task_summary())


def both_folder(path):
    rows = list(make_rows(lengths=(1024, 2048)))
    save(path, rows, make_summary(rows))
    return save_cost(path, make_cost_rows())


FOLDERS = {
    "tasks": (tasks_folder, ["maps", "curves", "effective", "pairs", "control", "misses", "plans"]),
    "cost": (lambda path: save_cost(path, make_cost_rows()), ["cost", "plans"]),
    "both": (
        both_folder,
        ["pareto", *(f"{name}1" for name in NAMES)] + ["cost2", "plans2"],
    ),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_each_folder_gets_the_sections_that_apply_to_it(tmp_path, kind):
    make, expected = FOLDERS[kind]
    found = read(make(tmp_path / "run"))
    assert [name for name in found.sections if not name.startswith("spent")] == [
        name for name in [*expected, *ALWAYS] if not name.startswith("spent")
    ]
    assert len(found.all("h1")) == 1
    assert all(svg.get("aria-label") or svg.get("aria-hidden") for svg in found.all("svg"))
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_every_section_has_a_title_and_a_template():
    for module in (*sections.LEAD, *sections.PARTS, *sections.TAIL):
        assert module.TITLE
        name = module.__name__.rpartition(".")[2]
        assert (page.files("hf_longctx.measure") / "templates" / "sections" / f"{name}.html.j2").is_file()


def test_a_suite_is_told_part_by_part_with_what_has_not_begun(tmp_path):
    folder = save_suite(tmp_path / "run")
    assert [path.name for path in write(folder)] == ["report.html"]
    found = read(folder)
    assert [attributes["aria-labelledby"] for attributes in found.all("article")] == ["part1", "part2", "part3"]
    assert "Unfinished suite. Nothing yet of later" in found.words
    assert "hf-longctx eval demo.yaml" in found.words
    assert found.sections[0] == "pareto"
    assert found.sections[-1] == "again"


@pytest.mark.parametrize("folder", ["../elsewhere", "/etc", "a/../../b"])
def test_a_suite_reads_no_folder_outside_of_itself(tmp_path, folder):
    part = {"name": "x", "kind": "needle", "model": "m", "folder": folder}
    with pytest.raises(ValueError, match="inside the run"):
        runs.read(save_suite(tmp_path / "run", parts=[part]))


def test_a_part_with_a_summary_and_no_rows_is_not_written_over(tmp_path):
    """As results are committed: a new page would lack what the old one has."""
    rows = list(make_rows(["stock"]))
    parts = [{"name": n, "kind": "needle", "model": "m", "folder": n} for n in ("bare", "whole")]
    folder = save_suite(tmp_path / "run", parts=parts)
    for name in ("bare", "whole"):
        save(folder / name, rows, make_summary(rows, ["stock"]))
    assert len(runs.read(folder).parts) == 2
    (folder / "bare" / "rows.jsonl").unlink()
    with pytest.raises(ValueError, match=r"part 'bare' has summary.json and no rows.*put rows.jsonl back"):
        runs.read(folder)


@pytest.mark.parametrize("suite", [{}, {"parts": [{"name": "x"}]}, {"parts": 3}, {"parts": []}])
def test_a_broken_suite_is_refused_by_name(tmp_path, suite):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "suite.json").write_text(json.dumps(suite))
    with pytest.raises(ValueError, match="suite"):
        runs.read(folder)


def test_a_run_of_distill_says_where_its_pages_are(tmp_path):
    (tmp_path / "distill.json").write_text("{}")
    with pytest.raises(ValueError, match=r"README.md and curves.png.*needle-before"):
        runs.read(tmp_path)


def test_rows_of_several_processes_are_read_as_one_run(tmp_path):
    rows = list(make_rows(["stock"]))
    folder = save(tmp_path / "run", rows[:10], make_summary(rows, ["stock"]))
    for name, part in (("rows.1-of-2.jsonl", rows[10:20]), ("rows.2-of-2.jsonl", rows[15:])):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in part))
    whole = save(tmp_path / "whole", rows, make_summary(rows, ["stock"]))
    assert runs.read(folder).parts[0].variants == runs.read(whole).parts[0].variants


@pytest.mark.parametrize("row", [{"variant": "stock"}, 3, None, {"variant": "a", "trial": 0, "length": "x"}])
def test_a_row_that_is_none_is_refused_in_a_sentence(tmp_path, row):
    folder = save(tmp_path / "run", [row], None)
    with pytest.raises(ValueError, match="row"):
        runs.read(folder)


def test_a_cost_run_in_which_nothing_worked_is_a_page_still(tmp_path):
    rows = [row for row in make_cost_rows() if row["outcome"] != "ok"] + [
        dict(next(make_cost_rows()), outcome="error", reason="exit code 1")
    ]
    found = read(save_cost(tmp_path / "run", rows))
    assert "standard runs out of memory at 4K" in found.words
    assert "failed exit code 1" in found.words


def test_a_cost_row_without_its_figures_is_refused(tmp_path):
    row = next(make_cost_rows())
    del row["peak_bytes"]
    with pytest.raises(ValueError, match="lacks peak_bytes"):
        runs.read(save_cost(tmp_path / "run", [row]))


# What the sections say


def test_a_run_of_tasks_says_effective_against_claimed_and_its_worst_failures(tmp_path):
    words = read(tasks_folder(tmp_path / "run", trials=40)).words
    assert "stock claims 8K; it is shown to fail at 1K, the shortest length tested (95% interval)." in words
    assert "75%" in words  # stock's mean over both tasks
    assert words.index("vt trial 1") < words.index("vt trial 2")
    assert "Expected 7654321, 1234567 , answered 1234567" in words


def test_pairs_count_what_one_variant_alone_answers(tmp_path):
    rows = list(make_rows(["stock", "yarn2"], lengths=(8192,)))
    line = sections.pairs.build(runs.recall(make_summary(rows, ["stock", "yarn2"]), rows), ())["lines"][0]
    assert (line["only_first"], line["only_other"], line["p"]) == (0, 5, "0.062")
    assert line["difference"] == "+100 points"
    assert line["interval"] == ""  # one trial says nothing of the spread


def test_an_answered_control_is_shouted(tmp_path):
    found = read(tasks_folder(tmp_path / "run", broken=("window",), trials=12))
    assert "Do not trust the score of window." in found.words
    assert any("loud" in one.get("class", "") for one in found.all("p"))
    assert "loud" not in read(tasks_folder(tmp_path / "clean")).words


def test_costs_show_failures_formulas_and_every_figure(tmp_path):
    found = read(save_cost(tmp_path / "run", make_cost_rows()))
    assert "standard runs out of memory at 4K" in found.words
    assert "out of memory killed" in found.words
    paths = [one.get("class", "") for one in found.all("path")]
    assert paths.count("cross s0") == 2  # in the chart of time and in that of memory
    assert "738 MiB" not in found.words
    rings = [one for one in found.all("circle") if one.get("class") == "ring"]
    assert len(rings) == 2 * 8 + 1  # peak and cache, eight measured rows, and one in the legend


@pytest.mark.parametrize("outcome", ["oom", "timeout", "skipped"])
def test_where_nothing_could_be_measured_the_formula_shows_with_the_sign_of_what_happened(tmp_path, outcome):
    said = {"modelled_working_bytes": 5 << 30, "modelled_peak_bytes": 6 << 30, "modelled_cache_bytes": 7 << 20}
    rows = [row if row["outcome"] == "ok" else row | said | {"outcome": outcome} for row in make_cost_rows()]
    folder = save_cost(tmp_path / "run", rows)
    charts = {chart["title"]: chart for chart in cost.build(runs.read(folder).parts[0], ())["charts"]}
    peak, cache = charts["Peak memory of the process"], charts["Cache after the last token"]
    for chart, told in ((peak, "5.59 GiB"), (cache, "7 MiB")):
        x, y, title = chart["series"][0]["rings"][-1]
        assert title == f"standard at 4K, by formula: {told}"
        (sign,) = chart["failures"]
        assert sign["path"] == f"M{x:g} {y:g}{cost.SIGNS[outcome]}"
        assert len(chart["series"][0]["model"].split()) == 3
    assert len(charts["Time to the first token"]["failures"]) == (outcome != "skipped")
    found = read(folder)
    assert f"standard at 4K: {cost.OUTCOMES[outcome]}; model says 6 GiB" in str(charts)
    assert "5 GiB" in found.words
    assert "7 MiB by formula" in found.words


def test_the_wall_of_a_known_model_is_drawn_for_its_variants(tmp_path):
    """From the configuration alone: standard falls first, the window keeps a bounded cache, RoPE alone is flash."""
    folder = both_folder(tmp_path / "run")
    assert "wall" not in read(folder).sections  # nothing here is called a-model
    for path in (folder / "run.json", folder / "summary.json", folder / "cost.json"):
        if path.is_file():
            path.write_text(path.read_text().replace("a-model", "SmolLM2-135M-Instruct"))
    found = read(folder)
    assert found.sections[-2:] == ["wall", "again"]
    (view,) = wall.build(runs.read(folder), machine("24GB"))["models"]
    rows = {row["name"]: row for row in view["rows"]}
    assert list(rows)[0] == "standard"
    flash = next(name for name in rows if name.startswith("flash"))
    assert "stock" in flash
    fits = {name: row["fits"] for name, row in rows.items()}
    window = fits["window"]
    config = architecture(known_config("SmolLM2-135M-Instruct"))
    at = {"chunk": 2048, "count": False}
    least = fits["standard"][0][1]
    assert cost_of(config, STANDARD, least, count=False).peak_bytes <= 24 * 10**9
    assert cost_of(config, STANDARD, least + 1, count=False).peak_bytes > 24 * 10**9
    assert cost_of(config, FLASH, fits[flash][1][1], **at).peak_bytes <= 24 * 10**9
    assert least < fits[flash][0][1]
    assert window[2] == ("any", "Infinity")
    chart = view["charts"][0]
    assert chart["limit"][1] == "24GB"
    assert {label for _, label in chart["claims"]} == {"claims 8K", "claims 16K"}
    write(folder, memory="l4")
    assert "NVIDIA L4" in (folder / "report.html").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="did you mean 'h100'"):
        write(folder, memory="h10")


def test_the_front_is_drawn_and_told(tmp_path):
    found = read(both_folder(tmp_path / "run"))
    view = pareto.build(runs.read(tmp_path / "run"), ())["views"][0]
    assert [panel["title"] for panel in view["panels"]] == ["1K tokens", "2K tokens"]
    assert view["standard"]
    assert "beaten by stock" in found.words
    assert "on the front" in found.words


def test_recall_and_cost_of_other_definitions_are_not_mixed(tmp_path):
    folder = both_folder(tmp_path / "run")
    cost = json.loads((folder / "cost.json").read_text())
    cost["variants"]["window"]["definition"] = {"attention": "window:7"}
    (folder / "cost.json").write_text(json.dumps(cost))
    names = {row["name"] for row in pareto.build(runs.read(folder), ())["views"][0]["rows"]}
    assert names == {"standard", "stock"}


points = st.lists(
    st.tuples(st.floats(0, 1), st.floats(1, 9), st.floats(1, 9)).map(lambda p: pareto.Point(str(p), *p, 1.0, "")),
    min_size=1,
    max_size=8,
    unique_by=lambda point: point.name,
)


@given(points)
def test_the_front_is_never_empty_and_beaten_ones_are_beaten_by_the_front(given):
    beaten = pareto.front(given)
    best = {name for name, by in beaten.items() if not by}
    assert best
    assert all(best & set(by) for name, by in beaten.items() if by)


def test_damage_is_drawn_by_position(tmp_path):
    rows = list(make_rows(["stock", "window"]))
    bins = [{"start": 0, "stop": 1024, "tokens": 1023, "perplexity": 21.5, "kl": None}]
    other = [bins[0] | {"perplexity": 24.25, "kl": 0.125}, bins[0] | {"start": 1024, "stop": 2048, "kl": 0.5}]
    summary = make_summary(rows, ["stock", "window"], damage={"stock": bins, "window": other, "no-bins": []})
    found = read(save(tmp_path / "run", rows, summary))
    assert "damage" in found.sections
    for expected in ("Damage by position", "24.2", "0.125", "1K to 2K"):
        assert expected in found.words
    assert "no-bins" not in found.words


def test_a_published_model_is_laid_over(tmp_path):
    rows = list(make_rows(["stock"]))
    found = read(save(tmp_path / "run", rows, make_summary(rows, ["stock"])), one_model("llama 3.1 8B"))
    assert "Beside a published model" in found.words
    assert "Llama 3.1 8B in NOLIMA: claims 128K, effective" in found.words
    assert any("overlay" in one.get("class", "") for one in found.all("polyline"))


def test_every_published_model_can_be_picked_by_its_name():
    from hf_longctx.measure.published import label

    for row in published():
        assert label(row) in [label(one) for one in one_model(label(row))]
    with pytest.raises(ValueError, match="choose one of"):
        one_model("llama")
    with pytest.raises(ValueError, match="no published model"):
        one_model("no such model")


@given(st.lists(st.floats(1e-6, 1e15), min_size=1, max_size=6), st.booleans())
def test_any_values_have_a_scale_with_a_few_ticks_in_its_box(values, binary):
    scale = plot.upwards(values)
    top, bottom = plot.PLOT["top"] - 0.1, plot.PLOT["bottom"] + 0.1
    assert all(top <= scale(value) <= bottom for value in values)
    places = [at for at, _ in plot.ticks(scale, str, binary=binary)]
    assert 1 <= len(places) <= 9
    assert all(top <= at <= bottom for at in places)


def test_hostile_text_stays_text_in_every_kind_of_run(tmp_path):
    folder = tmp_path / "run"
    save(folder, make_task_rows(text=HOSTILE), make_task_summary(model=HOSTILE, command=HOSTILE))
    rows = [row | {"variant": HOSTILE if row["variant"] == "window" else row["variant"]} for row in make_cost_rows()]
    save_cost(folder, [dict(row, reason=HOSTILE) for row in rows], ("standard", "stock", HOSTILE), command=HOSTILE)
    found = read(folder)
    assert found.all("script") == [{}]
    assert not found.all("img")
    assert not [key for _, attributes in found.elements for key in attributes if key.startswith("on")]
    assert "{{ 7 * 7 }} ☃ 針" in found.words


def test_tables_can_be_sorted_without_being_needed(tmp_path):
    html = page.render(runs.read(both_folder(tmp_path / "run")))
    assert html.count('class="grid sortable"') >= 5
    assert "<button" not in html.split("<script>")[0]  # the script makes them: without it nothing is dead
    assert not re.search(r'data-v="[^"]*(None|nan)', html)


def test_a_control_row_of_a_task_is_no_miss(tmp_path):
    rows = [make_row("stock", 1024, 0.5, "hit") | {"task": "vt", "kind": "vt", "score": 1.0}]
    rows += [rows[0] | {"kind": "control vt", "outcome": "miss", "score": 0.0}]
    part = runs.recall(make_task_summary(["stock"], tasks=["vt"]), rows)
    assert sections.misses.build(part, ())["groups"] == []
