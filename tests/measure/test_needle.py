"""The needle test end to end on a tiny model: rows, summary, resume, variants, and what it refuses."""

import copy
import json
import signal
import subprocess
import sys

import pytest
import torch

from hf_longctx import describe, is_patched, patch
from hf_longctx.measure import report, run_needle, subject
from hf_longctx.measure.controls import CONTROLS, LONE
from hf_longctx.measure.rows import row_key

VARIANTS = ["yarn2: rope=yarn:2", "window: attention=window:40+global:4"]
SETTINGS = {"lengths": [200, 400], "depths": 3, "progress": False}


@pytest.fixture
def quick(monkeypatch, four_tokens):
    """Runs without drawing the page."""
    monkeypatch.setattr(report, "attempt", lambda out: None)


def rows_of(out):
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    return {row_key(row): {**row, "seconds": None} for row in rows}


def test_a_run_leaves_rows_a_summary_a_page_and_the_model_as_it_was(model, tokenizer, tmp_path):
    model.train()
    seen = []
    summary = run_needle(model, tokenizer, variants=VARIANTS, out=tmp_path / "run", on_row=seen.append, **SETTINGS)
    assert model.training
    assert not is_patched(model)
    rows = rows_of(tmp_path / "run")
    assert len(rows) == len(seen) == 3 * 2 * (3 + 2)
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        ".locks",
        "rows.jsonl",
        "damage.jsonl",
        "run.json",
        "summary.json",
        "report.html",
        "heatmap.png",
    }
    assert list(summary["variants"]) == ["stock", "yarn2", "window"]
    assert [entry["claimed"] for entry in summary["variants"].values()] == [512, 1024, 512]
    for name, entry in summary["variants"].items():
        own = [row for row in rows.values() if row["variant"] == name]
        assert entry["prefill"]["spent"] == sum(row["prefill_tokens"] for row in own)
        assert entry["prefill"]["spent"] + entry["prefill"]["saved"] == sum(row["prompt_tokens"] for row in own)
        assert entry["prefill"]["saved"] > entry["prefill"]["spent"]
        assert [part["n"] for part in entry["lengths"]] == [3, 3]
        assert entry["plan"]["layers"]
    assert summary["variants"]["window"]["dispatched"]["implementation"] == "longctx"
    # Every variant is asked the same.
    asked = [[row[key] for key in ("question", "expected", "context", "needle_at")] for row in rows.values()]
    assert asked[:10] == asked[10:20] == asked[20:]


def test_a_patched_model_runs_beside_its_stock_self(model, tokenizer, quick):
    def answers(model, variants):
        rows = []
        summary = run_needle(model, tokenizer, variants=variants, on_row=rows.append, **SETTINGS)
        return {name: [row["answer"] for row in rows if row["variant"] == name] for name in summary["variants"]}

    apart = answers(model, VARIANTS)
    given = patch(copy.deepcopy(model), attention="window:40+global:4")
    together = answers(given, VARIANTS[:1])
    assert list(together) == ["stock", "as-loaded", "yarn2"]
    assert together == {"stock": apart["stock"], "as-loaded": apart["window"], "yarn2": apart["yarn2"]}
    assert given.config.longctx["attention"] == "window:40+global:4"


def test_rows_are_the_same_exact_or_shared_and_whatever_the_variants(model, tokenizer, quick):
    def rows(**more):
        found = []
        run_needle(model, tokenizer, on_row=found.append, **(SETTINGS | more))
        return {row_key(row): (row["answer"], row["outcome"], row["first_logit_top"]) for row in found}

    together = rows(variants=VARIANTS)
    assert together == rows(variants=VARIANTS, exact=True)
    assert {key: row for key, row in together.items() if key[0] == "window"} == rows(
        variants=VARIANTS[1:], stock=False
    )


@pytest.mark.slow
def test_killed_and_started_again_a_run_ends_with_the_same_rows(model, tokenizer, tmp_path, quick):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    script = (
        "import sys, time\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "from hf_longctx.measure import run_needle\n"
        "model, tokenizer = (cls.from_pretrained(sys.argv[1]) for cls in (AutoModelForCausalLM, AutoTokenizer))\n"
        f"run_needle(model, tokenizer, variants={VARIANTS!r}, out=sys.argv[2], model_name='tiny', trials=2,\n"
        f"           on_row=lambda row: (print(flush=True), time.sleep(0.05)), **{SETTINGS!r})\n"
    )
    out = tmp_path / "run"
    arguments = [sys.executable, "-c", script, str(tmp_path / "model"), str(out)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        for _ in range(13):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    with (out / "rows.jsonl").open("a") as file:
        file.write('{"variant": "yarn2", "tri')  # what a kill within a write leaves
    killed = rows_of_torn(out)
    assert 13 <= len(killed) < 60

    repeated = []
    options = {"variants": VARIANTS, "trials": 2, "model_name": "tiny", **SETTINGS}
    summary = run_needle(model, tokenizer, out=out, on_row=repeated.append, **options)
    run_needle(model, tokenizer, out=tmp_path / "whole", **options)
    assert len(repeated) == 60 - len(killed)
    assert rows_of(out) == rows_of(tmp_path / "whole")
    assert summary["variants"]["window"]["lengths"][0]["n"] == 6


def rows_of_torn(out):
    data = (out / "rows.jsonl").read_text()
    return data[: data.rfind("\n") + 1].splitlines()


@pytest.mark.parametrize("mode", ["shared", "single"])
def test_stopped_after_any_row_it_goes_on_from_there(model, tokenizer, tmp_path, quick, mode):
    options = {"needles": mode, "lengths": [200, 300], "depths": 2, "progress": False}
    whole = tmp_path / "whole"
    run_needle(model, tokenizer, out=whole, **options)

    def stop(row):
        raise KeyboardInterrupt

    out, stops = tmp_path / "run", 0
    while True:
        try:
            run_needle(model, tokenizer, out=out, on_row=stop, **options)
            break
        except KeyboardInterrupt:
            stops += 1
            summary = json.loads((out / "summary.json").read_text())
            measured = sum(cell["n"] for cell in summary["variants"]["stock"]["cells"])
            control = summary["variants"]["stock"]["control"]
            assert measured + sum(control[name]["n"] for name in (*CONTROLS, LONE)) == stops
    assert stops == len(rows_of(whole)) == 8
    assert rows_of(out) == rows_of(whole)


def test_finished_it_runs_nothing_and_may_gain_variants_and_trials(model, tokenizer, tmp_path, quick, monkeypatch):
    def run(**more):
        rows = []
        summary = run_needle(model, tokenizer, out=tmp_path, on_row=rows.append, **(SETTINGS | more))
        return rows, summary

    assert len(run()[0]) == 10
    forward = type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda *args, **kwargs: pytest.fail("the model ran again"))
    assert run()[0] == []
    monkeypatch.setattr(type(model), "forward", forward)
    rows, summary = run(variants=VARIANTS[:1])
    assert {row["variant"] for row in rows} == {"yarn2"}
    rows, summary = run(trials=2)
    assert {(row["variant"], row["trial"]) for row in rows} == {("stock", 1)}
    assert {name: entry["lengths"][0]["n"] for name, entry in summary["variants"].items()} == {"stock": 6, "yarn2": 3}


def test_another_configuration_in_the_same_folder_is_refused(model, tokenizer, tmp_path, quick):
    run_needle(model, tokenizer, out=tmp_path, variants=VARIANTS[:1], **SETTINGS)
    with pytest.raises(ValueError, match=r"seed was 0 and is now 1; choose another --out"):
        run_needle(model, tokenizer, out=tmp_path, seed=1, **SETTINGS)
    with pytest.raises(ValueError, match="give it another name"):
        run_needle(model, tokenizer, out=tmp_path, variants=["yarn2: rope=yarn:4"], **SETTINGS)


def test_what_cannot_work_is_refused_before_anything_is_written(model, tokenizer, tmp_path, monkeypatch):
    out = tmp_path / "run"
    bad = [
        ({"variants": ["a: rope=yarnn:2"]}, "yarn"),
        ({"variants": ["a: attention=window:0"]}, "window"),
        ({"trials": 0}, "trials=0"),
        ({"depths": 0}, "depths=0"),
        ({"lengths": []}, "lengths is empty"),
        ({"haystack": str(tmp_path)}, "holds no text"),
    ]
    for change, message in bad:
        with pytest.raises(ValueError, match=message):
            run_needle(model, tokenizer, out=out, **(SETTINGS | change))
        assert not is_patched(model)
    monkeypatch.setattr(subject, "free_memory", lambda device: 1000)
    with pytest.raises(ValueError, match="choose shorter lengths"):
        run_needle(model, tokenizer, out=out, **SETTINGS)
    assert not out.exists()


def test_the_memory_check_knows_which_variant_drops_keys(model, monkeypatch):
    from hf_longctx.measure.variants import STOCK, Variant, parse_variant

    window = parse_variant("w: attention=window:32+global:4")
    with subject.patched_as(model, window):
        need = describe(model).cache_bytes(1 << 20)
    monkeypatch.setattr(subject, "free_memory", lambda device: need)
    subject.look_at(model, window, longest=1 << 20)
    subject.look_at(model, Variant(STOCK))
    with pytest.raises(ValueError, match="under 'stock'"):
        subject.look_at(model, Variant(STOCK), longest=1 << 20)
    monkeypatch.setattr(subject, "free_memory", lambda device: need - 1)
    with pytest.raises(ValueError, match="under 'w'"):
        subject.look_at(model, window, longest=1 << 20)
    assert not is_patched(model)


def test_invalid_is_never_a_miss(model, tokenizer, quick):
    summary = run_needle(model, tokenizer, **(SETTINGS | {"lengths": [30, 200]}))
    cells = {(cell["length"], cell["depth"]): cell for cell in summary["variants"]["stock"]["cells"]}
    assert cells[30, 0.5]["n"] == 0
    assert cells[30, 0.5]["recall"] is None
    assert cells[200, 0.5]["n"] == 1


def test_beyond_learned_positions_nothing_is_asked(tokenizer, quick):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=250)
    rows = []
    run_needle(GPT2LMHeadModel(config), tokenizer, on_row=rows.append, **SETTINGS)
    assert {row["length"]: row["outcome"] == "invalid" for row in rows} == {200: False, 400: True}


def test_running_out_of_memory_is_a_result(model, tokenizer, quick, monkeypatch):
    forward = type(model).forward

    def small(self, *args, position_ids, **kwargs):
        if position_ids.max() > 250:
            raise torch.OutOfMemoryError("no memory left")
        return forward(self, *args, position_ids=position_ids, **kwargs)

    monkeypatch.setattr(type(model), "forward", small)
    rows = []
    run_needle(model, tokenizer, on_row=rows.append, **SETTINGS)
    assert {row["reason"] for row in rows if row["length"] == 400} == {"out of memory"}
    assert all(row["reason"] is None for row in rows if row["length"] == 200)


def test_a_rope_that_follows_the_length_is_read_once_a_length(model, tokenizer, quick):
    rows = []
    summary = run_needle(
        model, tokenizer, variants=["dynamic: rope=dynamic:1"], stock=False, on_row=rows.append, **SETTINGS
    )
    assert summary["variants"]["dynamic"]["per_length"]
    first = {row["length"]: row["prefill_tokens"] for row in rows if row["depth"] == 0}
    assert first[400] > 300


def test_a_model_that_switches_its_own_rope_shares_nothing(tokenizer, quick):
    from families import build

    parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = build("llama", vocab_size=len(tokenizer), rope_parameters=parameters)
    rows = []
    summary = run_needle(model, tokenizer, on_row=rows.append, **SETTINGS)
    assert summary["variants"]["stock"]["per_length"]
    assert summary["variants"]["stock"]["prefill"]["saved"] == 0


def test_without_the_report_packages_a_run_still_ends(model, tokenizer, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    summary = run_needle(model, tokenizer, out=tmp_path, **SETTINGS)
    assert "no report page" in caplog.text
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


@pytest.mark.slow
def test_the_demo_model_answers_alike_exact_or_shared(quick):
    from hf_longctx.hf.loading import load_model

    model, tokenizer = load_model("demo")

    def rows(exact):
        found = []
        options = {"lengths": [512, 1024], "depths": 3, "haystack": "prose", "progress": False}
        run_needle(model, tokenizer, variants=["yarn2: rope=yarn:2"], exact=exact, on_row=found.append, **options)
        return {row_key(row): (row["answer"], row["outcome"], row["first_logit_top"]) for row in found}

    shared = rows(False)
    assert shared == rows(True)
    assert sum(outcome == "hit" for _, outcome, _ in shared.values()) >= 8
