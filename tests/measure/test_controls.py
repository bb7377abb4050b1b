"""Controls: what a score is worth where nothing right can be said, and that the verdict follows."""

import json
import re

import pytest
import torch

from hf_longctx.measure import answer, cell, defaults
from hf_longctx.measure.controls import CONTROLS, LONE, caveat, control_of, failed, grade, is_control
from hf_longctx.measure.evaluate import run_tasks
from hf_longctx.measure.finding import verdict_line
from hf_longctx.measure.needle import run_needle
from hf_longctx.measure.needles import is_hit
from hf_longctx.measure.probe import Reply
from hf_longctx.measure.runs import read
from hf_longctx.measure.sections import control as section

FACT = re.compile(r"secret numbers of (\S+) is (\d{7})")


def rows(kind, hits, n):
    return [{"kind": kind, "outcome": "hit"}] * hits + [{"kind": kind, "outcome": "miss"}] * (n - hits)


@pytest.mark.parametrize(
    ("absent", "wrong", "trusted", "fails"),
    [
        ((0, 9), (0, 9), True, []),
        ((1, 20), (1, 20), True, []),  # one in twenty is what the limit allows
        ((1, 9), (1, 9), None, []),  # one of nine may be chance, or not
        ((0, 20), (1, 5), None, []),
        ((3, 3), (0, 9), False, ["no-needle"]),
        ((0, 9), (3, 3), False, ["wrong-key"]),
        ((3, 3), (3, 3), False, ["no-needle", "wrong-key"]),
        ((0, 9), (0, 0), True, []),  # a run of an earlier version
        ((0, 0), (0, 0), None, []),
    ],
)
def test_the_verdict_follows_both_controls(absent, wrong, trusted, fails):
    found = grade([*rows("control vt", *absent), *rows("control-wrong-key vt", *wrong), *rows("vt", 5, 5)])
    assert found["trusted"] is trusted
    assert failed(found) == fails
    assert ("cannot be trusted" in found["note"]) == (trusted is False)
    assert (found["no-needle"]["n"], found["wrong-key"]["hits"]) == (absent[1], wrong[0])


def answering(tokenizer, say):
    """In place of a model: what is said of a prompt's text and its question."""

    def ask(reader, ids, *, limit, decode, **more):
        text, _, question = decode(ids).rpartition("What is the secret number of ")
        said = say(dict(FACT.findall(text)), question.split("?")[0])
        return Reply((1,), said, torch.zeros(1))

    return ask


READERS = {  # what is said; score, hits without the needle, hits with the wrong key
    "looks the key up": (lambda facts, key: facts.get(key, "none"), 1.0, 0, 0),
    "says the number it sees": (lambda facts, key: next(iter(facts.values()), "none"), 1.0, 0, 3),
    "says nothing": (lambda facts, key: "", 0.0, 0, 0),
}


@pytest.mark.parametrize("reader", READERS)
def test_whoever_says_the_number_that_it_sees_is_found_out(reader, model, tokenizer, monkeypatch, tmp_path):
    say, score, absent, wrong = READERS[reader]
    monkeypatch.setattr(answer, "ask", answering(tokenizer, say))
    options = {"tasks": ["niah_single_2"], "lengths": [500], "trials": 3, "controls": 1, "out": tmp_path}
    found = run_tasks(model, tokenizer, **options)["variants"]["stock"]
    assert found["cells"][0]["score"] == score
    control = found["control"]
    assert [(control[name]["hits"], control[name]["n"]) for name in (*CONTROLS, LONE)] == [
        (absent, 3), (0, 0), (wrong, 3),
    ]  # fmt: skip
    assert ("not that the key asked for is read" in control["note"]) == bool(wrong)
    assert json.loads((tmp_path / "summary.json").read_text())["variants"]["stock"]["control"] == control
    shown = section.build(read(tmp_path).parts[0], ())["lines"][0]
    assert ("not shown to be the one asked for" in shown["said"]) == bool(wrong)
    assert ("not shown to be the one asked for" in (tmp_path / "report.html").read_text()) == bool(wrong)


@pytest.mark.parametrize("reader", READERS)
def test_the_default_task_takes_the_trust_of_whoever_does_not_read_the_key(reader, model, tokenizer, monkeypatch):
    say, *_ = READERS[reader]
    monkeypatch.setattr(answer, "ask", answering(tokenizer, say))
    options = {"tasks": [defaults.TASK], "lengths": [700], "trials": 12, "controls": 1}
    control = run_tasks(model, tokenizer, **options)["variants"]["stock"]["control"]
    assert (control["wrong-key"]["n"], control[LONE]["n"]) == (12, 0)
    assert failed(control) == (["wrong-key"] if reader == "says the number it sees" else [])
    assert caveat(control) == ""


def test_a_verdict_says_where_the_key_could_not_matter():
    absent = [{"kind": "control-wrong-key passkey", "lone": True, "outcome": "hit"}]
    clean = [{"kind": "control passkey", "outcome": "miss"}]
    found = {"low": 1024, "high": None, "confidence": 0.95, "verdicts": {"1024": "pass"}}

    def said(rows):
        return verdict_line("stock", {"claimed": 8192, "effective": {"absolute": found}, "control": grade(rows)})

    assert said(absent + clean).endswith("; no text held another key, so which one was asked could not matter.")
    # Whoever names no value for an absent key, or has been asked for another one, has shown that the key is read.
    assert "could not matter" not in said([{**absent[0], "outcome": "miss"}, *clean])
    assert "could not matter" not in said([*absent, *clean, {"kind": "control-wrong-key vt", "outcome": "miss"}])


@pytest.mark.parametrize("mode", ["shared", "single"])
def test_a_needle_run_asks_both_at_every_length(mode, make_grid, tokenizer):
    grid = make_grid(tokenizer, mode=mode)
    for trial in range(2):
        probes = grid.probes(trial)
        for length in grid.lengths:
            own = [probe for probe in probes if probe.length == length]
            assert [control_of({"kind": probe.kind}) for probe in own] == [None] * 3 + ["wrong-key", "no-needle"]
            wrong, absent = own[-2:]
            scored = next(probe for probe in own[:3] if probe.needle.value == wrong.needle.value)
            asked, said = (tokenizer.decode(one.prompt()) for one in (scored, wrong))
            assert asked.split("Question")[0].split(scored.needle.question)[0] in said
            text = said.split(wrong.needle.question)[0]
            assert wrong.needle.value in text
            assert (wrong.needle.relation.lower() in text.lower()) == (mode == "shared")
            assert absent.needle.relation != wrong.needle.relation
            assert absent.needle.value not in text


@pytest.mark.parametrize("blind", [False, True])
@pytest.mark.parametrize("mode", ["shared", "single"])
def test_a_needle_run_is_not_fooled(mode, blind, model, tokenizer, monkeypatch, capsys):
    """Blind, it says the last value before the question; else the value of what it is asked for."""
    told = re.compile(r"([A-Z][^.:?]*) is (\d{7})\.")

    def ask_all(reader, trunk, branches, *, wanted, decode, **more):
        for index, branch in enumerate(branches):
            text, _, question = decode([*trunk[: branch.at], *branch.rest]).rpartition("What is ")
            facts = [(owner.casefold(), value) for owner, value in told.findall(text)]
            own = [value for owner, value in facts if question.casefold().startswith(owner)]
            said = facts[-1:] and facts[-1][1] if blind else (own or ["none"])[0]
            yield index, Reply((1,), str(said or ""), torch.zeros(1))

    monkeypatch.setattr(cell, "ask_all", ask_all)
    options = {"lengths": [300, 400], "depths": 2, "trials": 3, "needles": mode, "damage": False}
    entry = run_needle(model, tokenizer, **options)["variants"]["stock"]
    assert entry["control"]["no-needle"]["hits"] == 0
    name = LONE if mode == "single" else "wrong-key"
    assert entry["control"][name]["n"] == 6
    if not blind:
        assert {one["recall"] for one in entry["lengths"]} == {1.0}
    hits = entry["control"][name]["hits"]
    if mode == "single":
        assert hits == (6 if blind else 0)
        assert entry["control"]["trusted"]  # with one key in the text, nobody can tell
    else:  # the value asked for is one of two
        assert 0 < hits < 6 if blind else hits == 0


def test_the_value_of_a_wrong_key_counts_as_a_scorer_would(make_grid, tokenizer):
    (wrong, *_) = [
        probe for probe in make_grid(tokenizer).probes(0) if control_of({"kind": probe.kind}) == "wrong-key"
    ]
    assert is_control({"kind": wrong.kind})
    assert is_hit(f" {wrong.needle.value}.", wrong.needle)
