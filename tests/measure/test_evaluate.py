"""Evaluating tasks: the same ids for all, rows that survive a kill, invalid apart from wrong, controls, budgets."""

import json
import re
import sys

import pytest
import torch
import typer
from typer.testing import CliRunner

from hf_longctx import describe, is_patched, patched
from hf_longctx.cli.effective import effective, parse_budget, parse_files
from hf_longctx.hf import loading
from hf_longctx.measure import answer, report, subject
from hf_longctx.measure.climb import run_effective
from hf_longctx.measure.controls import CONTROLS, LONE, control_of, kind_of
from hf_longctx.measure.evaluate import Evaluation, run_tasks
from hf_longctx.measure.report import load
from hf_longctx.measure.runs import read
from hf_longctx.measure.suite import summaries
from hf_longctx.measure.tally import numbers, pair, scores
from hf_longctx.measure.tasks import find
from hf_longctx.measure.variants import parse_variant

pytestmark = pytest.mark.usefixtures("six_tokens")

VARIANTS = ["window: attention=window:64+global:4", "yarn2: rope=yarn:2"]
OPTIONS = {"tasks": ["passkey", "key_value"], "lengths": [380, 480], "trials": 2, "variants": VARIANTS}


def rows_of(out):
    """Rows without what the clock decides."""
    lines = (out / "rows.jsonl").read_text().splitlines()
    return [re.sub(r'"seconds": [\d.]+', "", line) for line in lines]


def test_every_variant_is_asked_the_same_and_answers_as_generate_does(model, tokenizer, monkeypatch):
    seen = []
    real = answer.ask

    def spy(reader, ids, **more):
        reply = real(reader, ids, **more)
        seen.append((tuple(ids), reply.ids, more["limit"]))
        return reply

    monkeypatch.setattr(answer, "ask", spy)
    run_tasks(model, tokenizer, controls=0, **OPTIONS)
    asked = [ids for ids, _, _ in seen]
    assert len(asked) == 24
    assert asked[:8] == asked[8:16] == asked[16:]
    for ids, said, limit in seen[:8]:
        whole = model.generate(torch.tensor([ids]), max_new_tokens=limit, do_sample=False)[0, len(ids) :].tolist()
        assert list(said) == [token for token in whole if token != tokenizer.eos_token_id][: len(said)]
        assert len(said) == limit or tokenizer.eos_token_id in whole


def test_a_row_says_what_was_asked_and_found(model, tokenizer, tmp_path):
    summary = run_tasks(model, tokenizer, out=tmp_path, **OPTIONS)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * 2 * 2 * (2 + 2)  # two trials, and two controls with the first
    for row in rows:
        assert row["outcome"] in ("hit", "miss", "invalid")
        prompt = find(row["task"])(tokenizer, row["length"], row["trial"], control=control_of(row))
        assert row["expected"] == list(prompt.expected)
        assert row["prompt_tokens"] == len(prompt.ids)
        assert row["score"] == prompt.score(row["answer"])
        assert (row["depth"] is None) == (control_of(row) == "no-needle")
    assert [summary["variants"]["stock"]["control"][name]["n"] for name in (*CONTROLS, LONE)] == [4, 2, 2]
    assert summary["variants"]["stock"]["lengths"][0]["n"] == 2
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert [one["other"] for one in summary["paired"]] == ["window", "yarn2"]
    assert summary["paired"][0]["lengths"][0]["prompts"] == 4


def test_stopped_after_any_row_it_ends_with_the_same_rows(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "attempt", lambda out: None)
    whole = run_tasks(model, tokenizer, out=tmp_path / "whole", **OPTIONS)
    out, stops, seen = tmp_path / "run", 0, []

    def stop(row):
        seen.append(row)
        if len(seen) % 7 == 0:
            raise KeyboardInterrupt

    while True:
        try:
            summary = run_tasks(model, tokenizer, out=out, on_row=stop, **OPTIONS)
            break
        except KeyboardInterrupt:
            stops += 1
            torn = (out / "rows.jsonl").read_bytes()
            if stops == 2:  # a kill may tear the last line
                (out / "rows.jsonl").write_bytes(torn[:-20])
                seen.pop()
            assert json.loads((out / "summary.json").read_text())["variants"]["stock"]["cells"]
    assert stops == 7  # 48 rows in sevens, and once more for the torn row
    assert len(seen) == 48
    assert rows_of(out) == rows_of(tmp_path / "whole")
    for name in ("stock", "window", "yarn2"):
        assert summary["variants"][name]["cells"] == whole["variants"][name]["cells"]


def test_finished_it_runs_nothing_and_may_gain_trials_lengths_and_tasks(model, tokenizer, tmp_path, monkeypatch):
    def again(**more):
        rows = []
        run_tasks(model, tokenizer, out=tmp_path, on_row=rows.append, **(OPTIONS | {"variants": []} | more))
        return rows

    assert len(again()) == 16
    assert again() == []
    assert {row["trial"] for row in again(trials=3)} == {2}
    assert {row["length"] for row in again(lengths=[380, 420])} == {420}
    assert {row["task"] for row in again(tasks=["passkey", "multihop"], lengths=[480])} == {"multihop"}
    with pytest.raises(ValueError, match="seed was 0 and is now 1"):
        again(seed=1)
    with pytest.raises(ValueError, match="style was 'prefix' and is now 'base'"):
        again(style="base")


def test_too_short_and_out_of_memory_are_invalid_never_a_miss(model, tokenizer, monkeypatch):
    summary = run_tasks(model, tokenizer, tasks=["passkey"], lengths=[30, 300], trials=1)
    short, long = summary["variants"]["stock"]["cells"]
    assert (short["n"], short["invalid"], short["score"]) == (0, 1, None)
    assert (long["n"], long["invalid"]) == (1, 0)

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(answer, "ask", full)
    rows = []
    run_tasks(model, tokenizer, tasks=["passkey"], lengths=[300], trials=1, on_row=rows.append)
    assert {(row["outcome"], row["reason"]) for row in rows} == {("invalid", "out of memory")}


def test_a_length_that_a_task_has_no_prompt_for_is_invalid_and_the_others_go_on(model, tokenizer, monkeypatch):
    monkeypatch.setattr(sys.modules["hf_longctx.measure.tasks.common_words"], "COMPOUNDS", 200)
    rows = []
    options = {"tasks": ["common_words", "passkey"], "lengths": [1450, 12000], "trials": 1, "controls": 0}
    run_tasks(model, tokenizer, on_row=rows.append, **options)
    found = {(row["task"], row["length"]): row for row in rows}
    assert [key for key, row in found.items() if row["outcome"] == "invalid"] == [("common_words", 12000)]
    assert len(found) == 4
    assert "choose a shorter length" in found["common_words", 12000]["reason"]


def test_a_budget_ends_the_search_and_more_of_it_goes_on(model, tokenizer, tmp_path):
    rows = []  # the clock of this test: a second a row
    options = {"tasks": ["passkey"], "lengths": [200, 300], "trials": 6, "variants": VARIANTS[:1], "out": tmp_path}
    first = run_effective(model, tokenizer, budget=8, clock=lambda: len(rows), on_row=rows.append, **options)
    done = {name: sum(row["n"] for row in entry["lengths"]) for name, entry in first["variants"].items()}
    assert done == {"stock": 2, "window": 2}  # and two controls each
    assert first["variants"]["stock"]["effective"]["absolute"]["verdicts"] == {"200": "undecided"}
    whole = run_effective(model, tokenizer, **options)
    for name, entry in whole["variants"].items():
        assert sum(row["n"] for row in entry["lengths"]) > done[name]
        found = entry["effective"]["absolute"]
        assert (found["low"], found["high"]) == (None, 200)  # a random model finds nothing


@pytest.fixture
def told(monkeypatch):
    """Stock answers all, whatever is patched nothing: rows without a model, and how many there were."""
    asked = []

    def ask(self, variant, task, length, trial, control):
        kind = kind_of(control, task)
        if (variant, kind, length, trial) in self._rows:
            return
        score = float(control is None and variant == "stock")
        row = {"variant": variant, "task": task, "kind": kind, "trial": trial, "length": length, "depth": 0.5}
        asked.append(row)
        self._keep(row | {"outcome": "hit" if score else "miss", "score": score, "reason": None, "seconds": 1.0})

    monkeypatch.setattr(Evaluation, "_ask", ask)
    return asked


def test_time_that_is_left_over_goes_to_the_variant_that_can_use_it(model, tokenizer, told):
    options = {"tasks": ["passkey"], "lengths": [200, 300, 400], "variants": VARIANTS[:1], "bisections": 0}
    summary = run_effective(model, tokenizer, budget=200, clock=lambda: len(told), **options)
    stock, window = (entry["effective"]["absolute"] for entry in summary["variants"].values())
    assert (window["high"], stock["low"]) == (200, 400)  # half of the time would not have done for stock
    assert 100 < sum(row["variant"] == "stock" for row in told) <= 200


def test_controls_stand_beside_every_tenth_trial(model, tokenizer, told):
    run_tasks(model, tokenizer, tasks=["passkey"], lengths=[200, 300], trials=21)
    trials = [row["trial"] for row in told if row["length"] == 300 and control_of(row) == CONTROLS[0]]
    assert trials == [0, 10, 20]


def test_a_page_tells_what_the_rows_tell_not_the_summary_that_a_kill_left(model, tokenizer, told, tmp_path):
    options = {"tasks": ["passkey"], "lengths": [200, 300], "bisections": 0, "trials": 20, "out": tmp_path}
    run_effective(model, tokenizer, budget=5, clock=lambda: len(told), **options)
    old = (tmp_path / "summary.json").read_text()
    summary = run_effective(model, tokenizer, **options)
    (tmp_path / "summary.json").write_text(old)
    effective = read(tmp_path).parts[0].variants["stock"]["effective"]
    assert effective == summary["variants"]["stock"]["effective"]
    assert effective != json.loads(old)["variants"]["stock"]["effective"]
    assert summaries(tmp_path)[0]["summary"]["variants"]["stock"]["effective"] == effective  # what a gate asks
    (tmp_path / "summary.json").unlink()
    assert summaries(tmp_path)[0]["summary"]["variants"]["stock"]["effective"] == effective


def test_length_dependent_rope_is_read_as_if_alone(model, tokenizer):
    """Every prompt has its own cache, so a variant whose RoPE depends on the length needs no special path."""
    rows = []
    options = {"tasks": ["passkey"], "lengths": [700], "trials": 1, "controls": 0, "stock": False}
    run_tasks(model, tokenizer, variants=["dynamic: rope=dynamic:1"], on_row=rows.append, **options)
    assert rows[0]["outcome"] in ("hit", "miss")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tasks": []}, "tasks="),
        ({"tasks": ["nothing"]}, "unknown task 'nothing'"),
        ({"tasks": ["qa_1"]}, "give files="),
        ({"files": {"passkey": "x"}}, "reads no file"),
        ({"files": {"qa_1": "nowhere.json"}}, "cannot be read"),
        ({"lengths": []}, "lengths is empty"),
        ({"lengths": [1.5]}, "lengths holds 1.5"),
        ({"trials": 0}, "trials=0"),
        ({"style": "poem"}, "not a prompt style"),
        ({"variants": ["a: rope=yarnn:2"]}, "yarn"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(model, tokenizer, tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        run_tasks(model, tokenizer, out=tmp_path / "run", **(OPTIONS | change))
    assert not (tmp_path / "run").exists()


def test_too_little_memory_is_refused(model, tokenizer, monkeypatch):
    monkeypatch.setattr(subject, "free_memory", lambda device: 1000)
    with pytest.raises(ValueError, match="choose shorter lengths"):
        Evaluation(model, tokenizer, tasks=["passkey"], longest=1000)


def test_every_variant_is_checked_for_memory_not_stock_alone(model, tokenizer, monkeypatch):
    window = parse_variant("w: attention=window:32+global:4")
    with subject.patched_as(model, window):
        need = describe(model).cache_bytes(1000)
    monkeypatch.setattr(subject, "free_memory", lambda device: need)
    given = {"tasks": ["passkey"], "longest": 1000, "variants": [window]}
    Evaluation(model, tokenizer, stock=False, **given).close()
    with pytest.raises(ValueError, match="under 'stock'"):
        Evaluation(model, tokenizer, **given)


def test_a_patched_model_runs_as_loaded_beside_stock_and_stays_patched(model, tokenizer, tmp_path):
    options = OPTIONS | {"trials": 1, "lengths": [300], "out": tmp_path}
    with patched(model, rope="yarn:2"):
        found = run_tasks(model, tokenizer, **options | {"variants": ["w: attention=window:64"]})
        assert is_patched(model)
        with pytest.raises(ValueError, match="passkey2"):
            run_tasks(model, tokenizer, **options | {"tasks": ["passkey2"]})
        assert is_patched(model)
    assert list(found["variants"]) == ["stock", "as-loaded", "w"]
    assert found["variants"]["as-loaded"]["definition"]["rope"] == "yarn:2"
    plain = run_tasks(model, tokenizer, **options | {"variants": ["y: rope=yarn:2"], "out": None})
    for name, same in (("stock", "stock"), ("as-loaded", "y")):
        assert found["variants"][name]["cells"] == plain["variants"][same]["cells"]


def row(variant, trial, score, *, task="a", length=512, kind=None, outcome=None):
    outcome = outcome or ("hit" if score == 1 else "miss")
    return {
        "variant": variant, "task": task, "kind": kind or task, "length": length, "trial": trial, "score": score,
        "outcome": outcome,
    }  # fmt: skip


def test_a_trial_is_the_mean_of_its_tasks_and_invalid_if_one_is():
    rows = [
        row("s", 0, 1.0),
        row("s", 0, 0.5, task="b"),
        row("s", 1, 1.0),
        row("s", 1, None, task="b", outcome="invalid"),
    ]
    assert scores(rows, "s", ["a", "b"]) == {512: [0.75, None]}
    found = numbers([*rows, row("s", 0, 1.0, kind="control a")], "s", ["a", "b"])
    assert found["lengths"][0]["n"] == 1
    assert found["invalid"] == 1
    assert (found["control"]["no-needle"]["n"], found["control"]["no-needle"]["hits"]) == (1, 1)


def test_variants_are_compared_on_the_prompts_that_both_answered():
    rows = [row("s", trial, float(trial < 4)) for trial in range(8)]
    rows += [row("v", trial, float(trial < 7)) for trial in range(7)] + [row("v", 7, None, outcome="invalid")]
    (found,) = pair(rows, "s", "v", ["a"])["lengths"]
    assert (found["prompts"], found["only_first"], found["only_other"]) == (7, 0, 3)
    assert found["p"] == 0.25
    assert found["difference"] == pytest.approx(3 / 7)
    assert found["low"] <= found["difference"] <= found["high"]


@pytest.fixture
def call(model, tokenizer, monkeypatch):
    monkeypatch.setattr(loading, "load_model", lambda name, dtype=None, device=None: (model, tokenizer))
    app = typer.Typer()
    app.command()(effective)
    return lambda *arguments: CliRunner().invoke(app, ["tiny", *arguments])


def test_the_command_prints_verdicts_intervals_and_pairs(call, tmp_path):
    arguments = ("--task", "passkey", "--lengths", "200,300", "--trials", "6", "--variant", "yarn2: rope=yarn:2")
    result = call(*arguments, "--out", str(tmp_path / "run"))
    assert result.exit_code == 0, result.output
    assert "absolute (a score of 0.856): below 200 (95% interval)" in result.stdout
    assert "fitted curve: falls below it below the shortest" in result.stdout
    assert re.search(
        r"own \(0.85 of its 0.000 at 200\): undecided.*more full scores in a row at 200", result.stdout
    )  # six trials cannot show that there is no score to keep
    assert "yarn2 against stock at 200" in result.stdout
    assert "trial 1" in result.stderr
    assert f"page: {tmp_path / 'run' / 'report.html'}" in result.stdout
    assert "passkey" in (tmp_path / "run" / "report.html").read_text()
    assert load(tmp_path / "run")[0]["variants"]["yarn2"]["effective"]["absolute"]["high"] == 200
    again = call(*arguments, "--out", str(tmp_path / "run"), "--json")
    assert json.loads(again.stdout)["variants"]["yarn2"]["effective"]["absolute"]["high"] == 200
    assert again.stderr == ""


def test_the_command_shows_every_rung_also_of_a_variant_that_got_no_time(call):
    arguments = ("--task", "passkey", "--lengths", "200,300,400", "--trials", "6", "--variant", "yarn2: rope=yarn:2")
    shown = call(*arguments, "--budget", "0.001s").stdout
    stock, yarn = shown.split("yarn2, claims")
    for text in (stock, yarn):
        assert [line.split()[1] for line in text.splitlines() if line.startswith("│")] == ["200", "300", "400"]
        assert text.count("not asked: the run stopped at 200") == 2
    assert "200: the run stopped before its first trial" in yarn
    too_short = call("--task", "passkey", "--lengths", "20", "--trials", "6").stdout
    assert re.search(r"  20 could not be asked: passkey: .*needs more than 20 tokens", too_short)


def test_fixed_asks_every_length_and_searches_for_nothing(call):
    result = call("--task", "passkey", "--lengths", "200,300", "--fixed", "--trials", "2", "--json")
    entry = json.loads(result.stdout)["variants"]["stock"]
    assert [row["n"] for row in entry["lengths"]] == [2, 2]
    assert entry["effective"] == {}
    told = call("--lengths", "200", "--fixed", "--budget", "3m")
    assert "--budget belongs to the search" in str(told.exception)


def test_a_patch_of_its_own_and_a_gate_are_options_as_elsewhere(call, tmp_path):
    arguments = (
        "--task",
        "passkey",
        "--lengths",
        "200",
        "--trials",
        "2",
        "--attention",
        "window:64",
        "--rope",
        "yarn:2",
    )
    result = call(*arguments, "--json", "--fail-under", "patched:effective=200")
    definition = json.loads(result.stdout)["variants"]["patched"]["definition"]
    assert (definition["attention"], definition["rope"]) == ("window:64", "yarn:2")
    assert result.exit_code == 1
    assert "missed: patched: effective length (absolute)" in result.stderr
    assert "names the variant 'patchd'" in str(call(*arguments, "--fail-under", "patchd:effective=200").exception)
    assert "asks for recall" in str(call(*arguments, "--fail-under", "recall=0.5").exception)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--task", "qa_1"], "--task qa_1 reads a file of yours"),
        (["--files", "qa_1=nowhere.json"], "no such file"),
        (["--files", "passkey=x"], "reads no file"),
        (["--style", "poem"], "--style 'poem' does not exist"),
    ],
)
def test_a_slip_is_found_before_the_model_loads(call, monkeypatch, arguments, sentence):
    monkeypatch.setattr(loading, "load_model", lambda *args, **kwargs: pytest.fail("loaded"))
    assert sentence in str(call(*arguments).exception)


def test_times_and_files_as_written():
    assert [parse_budget(text) for text in ("90", "90s", "2m", "1h")] == [90, 90, 120, 3600]
    for text in ("", "0m", "-1s", "1d"):
        with pytest.raises(ValueError, match="is no time"):
            parse_budget(text)
    with pytest.raises(ValueError, match="once a task"):
        parse_files(["qa_1=a", "qa_1=b"])
