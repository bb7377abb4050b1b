"""The README's snippets and commands run, on small numbers and a tiny model, and in slow tests on the bundled one."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from hf_longctx.hf import loading
from tiny_model import make_prose_tokenizer, make_tiny

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SMALL = {"--lengths": "256", "--depths": "1", "--repeats": "1"}
#: Each variant of `cost` is a process that loads the model anew.
SHORTER = {
    "cost": ["--steps", "1", "--no-stock"],
    "extend": ["--steps", "1", "--batch", "1", "--pose", "--length", "128", "--no-measure"],
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random model that says what the bundled one says of itself, and has a layer for each that the README names."""
    folder, tokenizer = tmp_path_factory.mktemp("tiny"), make_prose_tokenizer()
    ids = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1}
    make_tiny(**ids, num_hidden_layers=6, max_position_embeddings=8192).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(params=["tiny", pytest.param("bundled", marks=pytest.mark.slow)])
def demo(request, monkeypatch):
    """What the name `demo` loads."""
    if request.param == "tiny":
        folder = request.getfixturevalue("tiny")
        monkeypatch.setattr(loading, "_demo", lambda: folder)
    else:
        try:
            loading.resolve(loading.DEMO)
        except ModuleNotFoundError as error:
            pytest.skip(str(error))


def test_the_first_result_is_near_the_top():
    lines = README.splitlines()
    assert any("heatmap.png" in line for line in lines[:30])
    assert any(line.startswith("| stock |") for line in lines[:25])


@pytest.mark.parametrize("snippet", blocks("python"), ids=lambda s: s.splitlines()[0])
def test_snippets_run(snippet, demo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README.md", "exec"), {"__name__": "__main__"})


def commands(slow: bool) -> list[str]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if any(f" {name} " in line for name in ("extend", "cost")) is slow]


#: The slow ones start processes, which know nothing of a stand-in.
RUNS = [("tiny", False), *(pytest.param("bundled", slow, marks=pytest.mark.slow) for slow in (False, True))]


@pytest.mark.parametrize(("demo", "slow"), RUNS, indirect=["demo"])
def test_commands_run(demo, slow, tmp_path, monkeypatch, run):
    """One test for all, in their order and one folder: some read what an earlier one wrote."""
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    for command in commands(slow):
        words = shlex.split(command)
        if words[0] == "make":
            done = subprocess.run(["make", "-n", *words[1:]], capture_output=True, text=True, cwd=ROOT)
            assert done.returncode == 0, done.stderr
            continue
        assert words[0] == "hf-longctx"
        for option, small in SMALL.items():
            if option in words:
                words[words.index(option) + 1] = small
        code, _, err = run(*words[1:], *SHORTER.get(words[1], []))
        assert not code, f"{command}: {err}"


def test_the_table_is_the_committed_result():
    summary = json.loads((ROOT / "evals" / "results" / "demo" / "summary.json").read_text())
    shown = {line.split("|")[1]: line.split("|")[2:-1] for line in README.splitlines() if line.count("/5 |") == 5}
    assert len(shown) == len(summary["variants"])
    for (label, cells), (name, variant) in zip(shown.items(), summary["variants"].items()):
        definition = " ".join(f"{key}={text}" for key, text in variant["definition"].items())
        assert name == label.strip() or f"`{definition}`" in label
        assert [cell.strip() for cell in cells] == [f"{c['hits']}/{c['n']}" for c in variant["lengths"]]


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)h][^)]*)\)", README):
        path, _, heading = target.partition("#")
        assert (ROOT / path).exists(), target
        if heading:
            assert f"\n## {heading.replace('-', ' ').capitalize()}\n" in (ROOT / path).read_text(), target
