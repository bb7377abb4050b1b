"""The command line: what it prints, its JSON, and one sentence with exit code 2 for a user's mistake."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from families import FAMILIES, build
from hf_longctx.cli import main
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


def test_env_and_models(run):
    document = json.loads(run("env", "--json")[1])
    assert document["backends"]["auto"].startswith("usable")
    assert "needs a CUDA device" in document["backends"]["flash"]
    models = json.loads(run("models", "--json")[1])
    assert set(models["tested"]) >= {"Llama", "Gemma 3"}
    assert "llama-3.1-8b" in models["public"]
    assert {row["suite"] for row in models["published"]} == {"ruler", "nolima", "babilong"}
    shown = run("models", "qwen3-14b")[1]
    assert ">128K" in shown
    assert "64K !" in shown


def test_wall_works_from_a_config_alone(tmp_path, run):
    """Bytes are integers, every method has a row a length, and the plot is a PNG."""
    build("mistral").config.save_pretrained(tmp_path / "model")
    plot = tmp_path / "wall.png"
    words = ("wall", str(tmp_path / "model"), "--attention", "window:8", "--attention", "0=full;*=block:4", "--memory")
    code, out, err = run(*words, "1MB", "--lengths", "1k,64", "--out", str(plot), "--json")
    assert code == 0, err
    document = json.loads(out)
    assert [m["name"] for m in document["methods"]] == ["standard", "flash", "window:8", "0=full;*=block:4", "mamba2"]
    for method in document["methods"]:
        assert [row["tokens"] for row in method["rows"]] == [64, 1024]
        assert all(isinstance(value, int) for row in method["rows"] for value in row.values())
    assert document["machine"]["memory"] == 10**6
    assert document["methods"][0]["fits"]["matrix_bytes"] == 707
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_wall_prints_every_pattern_and_preset(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("wall", "smollm2-135m", "--lengths", "256,512", "--memory", "l4")
    assert code == 0, err
    for name in ("standard: one matrix", "flash", "mamba2", "longnet", "window:1024", "NVIDIA L4", "plot: wall.png"):
        assert name in out
    assert (tmp_path / "wall.png").is_file()


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
        (("wall", "{nowhere}"), "llama-3.1-8b"),
        (("wall", "{model}", "--memory", "h10"), "did you mean 'h100'"),
        (("wall", "{model}", "--attention", "windw:8"), "did you mean 'window'"),
        (("wall", "{model}", "--mamba", "99"), "matches no layer"),
        (("cost", "{model}", "--lengths", "1x"), "1x"),
        (("cost", "{model}", "--variant", "x"), "variant 'x'"),
        (("cost", "{nowhere}"), "cannot be loaded"),
        (("models", "nobody"), "no published model"),
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
    for command in ("needle", "cost", "wall", "report", "rope", "describe", "patterns", "models", "env"):
        assert command in shown
