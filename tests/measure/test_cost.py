"""Measured cost: the cache counted from tensors is the described one, the stored scores show, failures are rows."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace

import pytest
import torch
from rich.console import Console

import hf_longctx as lc
from families import FAMILIES, build
from hf_longctx.cli.cost import table
from hf_longctx.cli.wall import size as decimal
from hf_longctx.hf.architecture import architecture
from hf_longctx.hf.loading import DEMO, load_config, resolve
from hf_longctx.measure import cost as module
from hf_longctx.measure.cost import run_cost
from hf_longctx.measure.cost_child import Task, measure
from hf_longctx.measure.cost_model import STANDARD, Method, cost
from hf_longctx.measure.memory import Meter, _status, is_out_of_memory, limited, returning
from hf_longctx.measure.runs import read as read_run
from hf_longctx.measure.sections.cost import OUTCOMES
from hf_longctx.measure.sections.words import size as binary
from hf_longctx.measure.variants import Variant
from hf_longctx.patterns import parse
from page_reader import read as read_page

WINDOW = "window: attention=window:20+global:2"


def saved(tmp_path, family="llama", **changes):
    build(family, **changes).save_pretrained(tmp_path / family)
    return str(tmp_path / family)


def saved_patched(tmp_path, **plan):
    lc.patch(build("llama"), **plan).save_pretrained(tmp_path / "patched")
    return str(tmp_path / "patched")


def task(model, **changes):
    usual = {"dtype": None, "device": "cpu", "definition": {}, "implementation": None, "length": 50, "steps": 3}
    return Task(**{"model": model, **usual, "repeats": 1, "chunk": None, "seed": 0, "memory": None} | changes)


@pytest.fixture(scope="module")
def heavy(tmp_path_factory):
    """A model whose scores are most of what a prompt takes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 2}
    path = tmp_path_factory.mktemp("heavy")
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=128, num_hidden_layers=2)).save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("definition", "chunk"),
    [({}, None), ({"attention": "window:20+global:2"}, None), ({"attention": "block:8,1"}, 16)],
)
def test_counted_cache_is_the_described_one(family, definition, chunk, tmp_path):
    found = measure(task(saved(tmp_path, family), definition=definition, chunk=chunk))
    assert found["cache_bytes"] == found["described_bytes"]
    assert found["cache_storage_bytes"] >= found["cache_bytes"]


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_stored_scores_show_as_predicted(heavy, dtype):
    """In a process of its own: what other tests left in the heap of this one would count."""
    assert_close_to_model(heavy, 1024, dtype, run=lambda what: module._child(what, 300))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("length", [2048, 4096])
def test_the_wall_is_seen_from_another_process(heavy, length, dtype):
    assert_close_to_model(heavy, length, dtype, run=lambda what: module._child(what, 300))


@pytest.mark.slow
def test_the_wall_is_seen_on_the_bundled_model():
    try:
        resolve(DEMO)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    assert_close_to_model(DEMO, 1024, "float32", run=lambda what: module._child(what, 600))


def assert_close_to_model(model, length, dtype, run=measure):
    """What the prefill takes under standard attention is within 10% of the formula, and scores are most of it."""
    found = run(task(model, implementation="eager", length=length, dtype=dtype))
    assert (found["outcome"], found["implementation"], len(found["prefill_seconds"])) == ("ok", "eager", 1)
    if found["working_bytes"] is None:
        pytest.skip("this system does not tell the high-water mark of a stretch of work")
    sizes = architecture(load_config(model))
    modelled = cost(sizes, STANDARD, length, itemsize=2 if dtype == "bfloat16" else 4, device="cpu", count=False)
    assert modelled.score_bytes > modelled.working_bytes / 2
    assert found["working_bytes"] == pytest.approx(modelled.working_bytes, rel=0.1)


def test_without_stored_scores_there_is_no_wall(heavy):
    standard, flash = (measure(task(heavy, implementation=i, length=1024)) for i in ("eager", None))
    if standard["working_bytes"] is None:
        pytest.skip("this system does not tell the high-water mark of a stretch of work")
    assert flash["working_bytes"] < standard["working_bytes"] / 5


def test_running_out_of_memory_is_a_result(heavy):
    if _status("VmData") is None:
        pytest.skip("this system does not limit the memory of a process")
    found = measure(task(heavy, implementation="eager", length=4096, memory=_status("VmData") + (200 << 20)))
    assert found["outcome"] == "oom"
    assert "allocate" in found["reason"]


def test_limits_are_taken_back():
    if _status("VmData") is None:
        pytest.skip("this system does not limit the memory of a process")
    with pytest.raises(RuntimeError) as caught, limited(torch.device("cpu"), _status("VmData") + (64 << 20)):
        torch.ones(1 << 27)
    assert is_out_of_memory(caught.value)
    assert torch.ones(1 << 20).sum() == 1 << 20
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


def test_freed_tensors_do_not_count():
    meter = Meter(torch.device("cpu"))
    if not meter.exact:
        pytest.skip("this system does not tell the high-water mark of a stretch of work")
    with returning():
        meter = Meter(torch.device("cpu"))
        for _ in range(20):
            torch.ones(1 << 24)  # 64 MiB: never out of what the heap already holds
        assert 60 << 20 < meter.peak() - meter.before < 128 << 20


@pytest.fixture
def scripted(monkeypatch):
    """Children answer from a list, and what they were asked is kept."""

    def script(answers):
        asked = []

        def child(what, timeout):
            asked.append((what.implementation or str(what.definition.get("attention")), what.length))
            return answers(what)

        monkeypatch.setattr(module, "_child", child)
        return asked

    return script


def fine(what):
    found = measure(replace(what, memory=None))  # this process holds more than a child would
    return found | {"prefill_seconds": [1.0, 2.0, 4.0], "decode_seconds": [0.5] * 3}


def test_rows_say_speed_memory_and_cache(tmp_path, scripted):
    model = saved(tmp_path)
    scripted(fine)
    document = run_cost(model, variants=[WINDOW], lengths=[40, 20], steps=4, out=tmp_path / "run")
    rows = document["rows"]
    assert [(r["length"], r["variant"]) for r in rows] == [
        (n, v) for n in (20, 40) for v in ("standard", "stock", "window")
    ]
    last = rows[-1]
    assert last["ttft_seconds"] == {"median": 2.0, "low": 1.5, "high": 3.0, "values": [1.0, 2.0, 4.0]}
    assert last["prefill_tokens_per_second"]["median"] == 20
    assert last["decode_tokens_per_second"]["values"] == [8.0, 8.0, 8.0]
    assert last["cache_bytes"] == last["described_cache_bytes"] < rows[-2]["cache_bytes"]
    assert rows[0]["implementation"] == "eager"
    assert last["implementation"] == "longctx"
    assert all(isinstance(last[key], int) for key in last if key.endswith("_bytes") and last[key] is not None)
    assert [json.loads(line) for line in (tmp_path / "run" / "cost.jsonl").read_text().splitlines()] == rows
    assert document["variants"]["window"]["definition"] == {"attention": "window:20+global:2"}
    assert table(rows).row_count == 6
    narrow = Console(width=80, file=io.StringIO())
    narrow.print(table([row | {"variant": "as-loaded"} for row in rows]))
    assert {"cache", *decimal(last["cache_bytes"]).split()} <= set(narrow.file.getvalue().split())


def test_a_run_goes_on_where_it_stopped(tmp_path, scripted):
    model, settings = saved(tmp_path), {"lengths": [20], "stock": False, "out": tmp_path / "run"}
    scripted(fine)
    first = run_cost(model, **settings)["rows"]
    asked = scripted(fine)
    assert run_cost(model, **settings)["rows"] == first
    assert asked == []
    run_cost(model, variants=[WINDOW], **settings | {"lengths": [20, 30]})
    assert asked == [("window:20+global:2", 20), ("eager", 30), ("window:20+global:2", 30)]
    with pytest.raises(ValueError, match="repeats was 3 and is now 5"):
        run_cost(model, repeats=5, **settings)


def test_out_of_memory_time_out_and_errors_are_rows(tmp_path, scripted):
    def answers(what):
        if what.implementation == "eager":
            return {"outcome": "oom", "reason": "no room"}
        if what.definition:
            return {"outcome": "error", "reason": "exit code 1: odd"}
        return {"outcome": "timeout", "reason": "not done after 1 seconds"} if what.length > 20 else fine(what)

    asked = scripted(answers)
    rows = run_cost(saved(tmp_path), variants=[WINDOW], lengths=[20, 30, 40], out=tmp_path / "run")["rows"]
    by = {(r["variant"], r["length"]): (r["outcome"], r["reason"]) for r in rows}
    assert by["standard", 20] == ("oom", "no room")
    assert by["standard", 40] == ("skipped", "oom at 20 tokens")
    assert [by["stock", n][0] for n in (20, 30, 40)] == ["ok", "timeout", "skipped"]
    assert by["window", 40] == ("error", "exit code 1: odd")
    assert table(rows).row_count == 9
    # An error may have been an accident, so it alone is tried again.
    asked.clear()
    run_cost(str(tmp_path / "llama"), variants=[WINDOW], lengths=[20, 30, 40], out=tmp_path / "again")
    assert len(asked) == 6
    asked.clear()
    run_cost(saved(tmp_path), variants=[WINDOW], lengths=[20, 30, 40], out=tmp_path / "run")
    assert asked == [("window:20+global:2", n) for n in (20, 30, 40)]


def test_what_ran_out_is_measured_again_when_asked(tmp_path, scripted, run):
    """By default kept, with a word on how to retry; figures that are there never are measured twice."""
    model, out = saved(tmp_path), tmp_path / "run"
    options = ("cost", model, "--lengths", "20,30,40", "--no-standard", "--device", "cpu", "--out", str(out))

    def short(what):
        return {"outcome": "oom", "reason": "no room"} if what.length > 20 else fine(what)

    def outcomes(*more):
        code, said, err = run(*options, *more)
        assert code == 0, err
        latest = {}
        for line in (out / "cost.jsonl").read_text().splitlines():
            row = json.loads(line)
            latest[row["length"]] = (row["outcome"], row.get("memory_limit"))
        return said, [latest[n] for n in (20, 30, 40)]

    asked = scripted(short)
    said, found = outcomes("--memory", "1GB")
    assert found == [("ok", 10**9), ("oom", 10**9), ("skipped", None)]
    assert "--retry measures them again" in said
    asked.clear()
    # Folders of earlier versions keep the memory among what a run must agree on.
    noted = json.loads((out / "cost.json").read_text())
    (out / "cost.json").write_text(json.dumps(noted | {"settings": noted["settings"] | {"memory": 10**9}}))
    assert outcomes("--memory", "2GB")[1] == found
    assert asked == []
    assert outcomes("--memory", "2GB", "--retry")[1] == [("ok", 10**9), ("oom", 2 * 10**9), ("skipped", None)]
    assert [length for _, length in asked] == [30]
    asked = scripted(fine)
    said, found = outcomes("--retry", "--memory", "3GB")
    assert found == [("ok", 10**9), ("ok", 3 * 10**9), ("ok", 3 * 10**9)]
    assert [length for _, length in asked] == [30, 40]
    assert "--retry" not in said
    # A row of another process's file, read first or last, is not taken for the newer one.
    rows = (out / "cost.jsonl").read_text().splitlines()
    (out / "cost.1-of-2.jsonl").write_text("\n".join(rows[3:]) + "\n")
    (out / "cost.jsonl").write_text("\n".join(rows[:3]) + "\n")
    asked.clear()
    assert run(*options, "--retry")[0] == 0
    assert asked == []
    assert {row["outcome"] for row in read_run(out).parts[0].rows} == {"ok"}


@pytest.mark.parametrize(
    "plan", [{"attention": "window:8"}, {"rope": "yarn:2"}, {"attention": "block:8,1", "rope": "dynamic:1"}]
)
def test_a_folder_saved_patched_runs_as_loaded_beside_variants(plan, tmp_path, scripted):
    """Its rows are those of the same patch on the stock model, and stock is really stock."""
    scripted(fine)
    settings = {"lengths": [40], "steps": 4, "repeats": 1}
    found = run_cost(saved_patched(tmp_path, **plan), variants=[WINDOW], **settings)
    same = Variant("same", **plan)
    beside = run_cost(saved(tmp_path), variants=[WINDOW, same], **settings)
    assert list(found["variants"]) == ["standard", "stock", "as-loaded", "window"]
    assert found["variants"]["as-loaded"]["definition"].items() >= plan.items()
    rows, others = ({row["variant"]: row for row in run["rows"]} for run in (found, beside))
    figures = ("cache_bytes", "described_cache_bytes", "implementation", "backends", "modelled_working_bytes")
    for name, other in (("standard", "standard"), ("stock", "stock"), ("as-loaded", "same"), ("window", "window")):
        assert rows[name]["cache_bytes"] == rows[name]["described_cache_bytes"]
        assert [rows[name][key] for key in figures] == [others[other][key] for key in figures]


@pytest.mark.parametrize("more", [{}, {"attention": "window:8+global:2", "rope": "yarn:2"}])
def test_saved_mamba_layers_are_measured_alone(more, tmp_path, scripted):
    scripted(fine)
    model = saved_patched(tmp_path, mamba="1", **more)
    found = run_cost(model, lengths=[40], steps=4, stock=False, standard=False)
    (row,) = found["rows"]
    assert row["variant"] == "as-loaded"
    assert [layer["kind"] for layer in found["variants"]["as-loaded"]["plan"]["layers"]].count("linear_attention") == 1
    attention = None if not more else parse(more["attention"])
    method = Method("same", attention=attention, patched=bool(more), mamba="1")
    by_formula = cost(architecture(build("llama").config), method, 44, itemsize=4, device="cpu").cache_bytes
    assert row["cache_bytes"] == row["described_cache_bytes"] == by_formula
    for settings in ({"standard": False}, {"stock": False}, {"variants": [WINDOW], "stock": False, "standard": False}):
        with pytest.raises(ValueError, match=r"no stock model behind it.*--no-standard in cost"):
            run_cost(model, lengths=[40], **settings)


def test_the_command_line_measures_saved_mamba_layers(tmp_path, scripted, run):
    scripted(fine)
    model = saved_patched(tmp_path, mamba="1")
    code, out, _ = run("cost", model, "--lengths", "40", "--no-stock", "--no-standard", "--json")
    assert (code, [row["variant"] for row in json.loads(out)["rows"]]) == (0, ["as-loaded"])
    code, _, err = run("cost", saved(tmp_path), "--lengths", "40", "--no-stock", "--no-standard")
    assert code == 2
    assert "there is nothing to run" in err


def test_what_cannot_be_measured_has_the_modelled_figure(tmp_path, scripted, run):
    """Out of memory or time, or not tried after that: the formula's bytes, in rows, lines and the page."""

    def answers(what):
        if what.implementation == "eager":
            return {"outcome": "oom" if what.length == 20 else "error", "reason": "no room"}
        return {"outcome": "timeout", "reason": "not done"} if what.definition else fine(what)

    scripted(answers)
    model, out = saved(tmp_path), tmp_path / "run"
    options = ("--variant", WINDOW, "--lengths", "20,40", "--dtype", "bfloat16", "--device", "cpu", "--out", str(out))
    code, said, err = run("cost", model, *options)
    assert code == 0, err
    rows = [json.loads(line) for line in (out / "cost.jsonl").read_text().splitlines()]
    sizes = architecture(load_config(model))
    window = Method("window", attention=parse("window:20+global:2"), patched=True)
    page = read_page(out).words
    for row in rows:
        if row["variant"] == "stock":
            continue
        method = STANDARD if row["variant"] == "standard" else window
        modelled = cost(sizes, method, row["length"], itemsize=2, device="cpu")
        assert row["outcome"] == {20: "oom" if method is STANDARD else "timeout", 40: "skipped"}[row["length"]]
        assert row["modelled_working_bytes"] == modelled.working_bytes
        assert row["modelled_peak_bytes"] == modelled.peak_bytes
        words = f"{OUTCOMES[row['outcome']]}; model says"
        line = f"{row['variant']} at {row['length']}: {words} {decimal(modelled.peak_bytes)}"
        assert line in said
        assert f"{words} {binary(modelled.peak_bytes)}" in page
        assert f"{words} {decimal(modelled.peak_bytes)}" in err


@pytest.mark.parametrize(
    ("script", "outcome", "reason"),
    [
        ("sleep 9", "timeout", "not done after 0.2 seconds"),
        ("kill -9 $$", "oom", "killed by the system"),
        ("echo odd >&2; exit 3", "error", "exit code 3: odd"),
    ],
)
def test_a_process_that_does_not_end_well(script, outcome, reason, tmp_path, monkeypatch):
    """Really another process, if not Python's; what comes back from one that ends well is above."""
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    found = module._child(task("any"), 0.2 if outcome == "timeout" else 60)
    assert found["outcome"] == outcome
    assert found["reason"].startswith(reason)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"repeats": 0}, "repeats is 0"),
        ({"chunk": 0}, "chunk is 0"),
        ({"timeout": 0}, "timeout is 0"),
        ({"lengths": []}, "at least one"),
        ({"dtype": "float8"}, "float32, bfloat16, float16"),
        ({"variants": ["standard: rope=linear:2"]}, "reserved"),
        ({"variants": ["a: attention=windw:2"]}, "did you mean 'window'"),
        ({"stock": False, "standard": False}, "nothing to run"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(change, message, tmp_path, scripted):
    asked = scripted(fine)
    with pytest.raises(ValueError, match=message):
        run_cost(saved(tmp_path), out=tmp_path / "run", **{"lengths": [20]} | change)
    assert asked == []
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
def test_on_a_gpu_the_allocator_tells(heavy):
    found = measure(task(heavy, implementation="eager", length=2048, device="cuda", dtype="bfloat16"))
    modelled = cost(architecture(load_config(heavy)), STANDARD, 2048, count=False)
    assert found["working_bytes"] == pytest.approx(modelled.working_bytes, rel=0.1)
    assert found["reserved_bytes"] >= found["peak_bytes"]
