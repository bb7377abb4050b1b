"""The command line: what it prints, its JSON, and one sentence with exit code 2 for a user's mistake."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from families import FAMILIES, build
from hf_longctx.cli import main
from hf_longctx.measure.tasks import names as task_names
from hf_longctx.patterns import names


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hf-longctx", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capsys.readouterr()
        return int(exit_.value.code or 0), out, err

    return call


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "hf_longctx", "patterns", "win:3"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unknown attention pattern 'win'")


def test_patterns_draws_all_and_one(run):
    document = json.loads(run("patterns", "--json")[1])
    assert {p["text"].split(":")[0] for p in document["patterns"]} == set(names())
    one = json.loads(run("patterns", "window:2+global:1", "--size", "4", "--json")[1])["patterns"]
    assert one == [{"text": "window:2+global:1", "share": 0.9, "grid": ["# . . .", "# # . .", "# # # .", "# . # #"]}]
    assert "window:2" in run("patterns", "window:2")[1]


def test_tasks_are_listed_and_rendered(run):
    listed = json.loads(run("tasks", "--json")[1])["tasks"]
    assert [entry["name"] for entry in listed] == list(task_names())
    assert {entry["name"] for entry in listed if "example" not in entry} == {"qa_1", "qa_2"}
    shown = run("tasks")[1]
    assert all(name in shown for name in task_names())
    (one,) = json.loads(run("tasks", "niah_single_2", "--length", "512", "--depth", "0", "--json")[1])["tasks"]
    (value,) = one["example"]["expected"]
    rendered = run("tasks", "niah_single_2", "--length", "512", "--depth", "0")[1]
    assert one["example"]["text"] in rendered
    assert f" is {value}." in rendered
    assert one["example"]["overlap"] == 1.0


def test_env_and_models(run):
    document = json.loads(run("env", "--json")[1])
    assert document["backends"]["auto"].startswith("usable")
    assert "needs a CUDA device" in document["backends"]["flash"]
    assert set(json.loads(run("models", "--json")[1])["tested"]) >= {"Llama", "Gemma 3"}


@pytest.mark.parametrize("family", FAMILIES)
def test_describe_reads_only_the_config(family, tmp_path, run):
    build(family).config.save_pretrained(tmp_path)
    arguments = ("describe", str(tmp_path), "--attention", "window:8+global:2", "--rope", "yarn:4", "--json")
    code, out, err = run(*arguments)
    assert code == 0, err
    document = json.loads(out)
    assert document["rope"] == "yarn:4"
    assert document["max_positions"] == 256
    assert len(document["layers"]) == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("describe", "{model}", "--attention", "windw:8"), "did you mean 'window'"),
        (("describe", "{model}", "--rope", "yarn:0.5"), "0.5"),
        (("describe", "{nowhere}"), "cannot be loaded"),
        (("patterns", "window:x"), "whole number"),
        (("patterns", "--size", "0"), "at least 1"),
        (("report", "{nowhere}"), "nowhere"),
        (("rope", "{model}", "--rope", "yarrn:4"), "did you mean 'yarn'"),
        (("needle", "{model}", "--lengths", "1x"), "1x"),
        (("effective", "{model}", "--task", "niah_single1"), "did you mean 'niah_single_1'"),
        (("effective", "{model}", "--budget", "soon"), "such as 30m"),
        (("effective", "{model}", "--confidence", "95"), "such as 0.95"),
        (("effective", "{model}", "--files", "squad.json"), "TASK=FILE"),
        (("tasks", "niah_single1"), "did you mean 'niah_single_1'"),
        (("tasks", "passkey", "--length", "20"), "needs more than 20 tokens"),
        (("tasks", "passkey", "--length", "1k,2k"), "give one length"),
        (("tasks", "qa_1"), "SQuAD"),
        (("needle", "{model}", "--variant", "x"), "variant 'x'"),
        (("needle", "{model}", "--dtype", "float8"), "float32, bfloat16, float16"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments, sentence, tmp_path, run):
    build("llama").config.save_pretrained(tmp_path / "model")
    places = {"model": tmp_path / "model", "nowhere": tmp_path / "nowhere"}
    code, out, err = run(*(a.format(**places) for a in arguments))
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.startswith("error: ")


def test_help_names_every_command(run):
    shown = run("--help")[1]
    for command in ("needle", "effective", "tasks", "report", "rope", "describe", "patterns", "models", "env"):
        assert command in shown
