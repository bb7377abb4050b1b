"""The command line: what it prints, its JSON, and one sentence with exit code 2 for a user's mistake."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from families import FAMILIES, build
from hf_longctx.attention import BACKENDS, flash, flex
from hf_longctx.cli import main
from hf_longctx.cli.env import _backend
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


def test_env(run):
    document = json.loads(run("env", "--json")[1])
    assert document["backends"]["auto"].startswith("usable")
    assert "needs a CUDA device" in document["backends"]["flash"]
    assert set(document["backends"]) == set(BACKENDS)
    assert document["backends"]["tiled"] == "usable on cpu"
    assert {"flex", "triton", "flash-attn"} <= set(document["optional"])


def test_env_knows_forward_only_and_what_is_missing(monkeypatch):
    """Both are asked of the backends themselves."""
    assert _backend("flex", torch.device("cpu")) == "usable on cpu, forward only"
    monkeypatch.setattr(flex, "_no_compiler", lambda device: "there is no compiler")
    assert "there is no compiler" in _backend("flex", torch.device("cuda"))
    monkeypatch.setattr(flash, "_no_kernel", lambda device: None)
    monkeypatch.setattr(flash, "_kernel", lambda device: flash._Kernel("some kernel", lambda *_: _))
    assert _backend("flash", torch.device("cuda")) == "usable on cuda by some kernel"


def test_models(run):
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
    for command in ("needle", "report", "rope", "describe", "patterns", "models", "env"):
        assert command in shown
