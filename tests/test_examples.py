"""The examples run, on a tiny model saved to disk."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from hf_longctx.patterns import REGISTRY
from tiny_model import make_byte_tokenizer, make_tiny

ROOT = Path(__file__).parents[1]
ARGUMENTS = {
    "extend_smollm2.py": ["--to", "1k", "--length", "128", "--steps", "2", "--out", "{out}"],
    "extend_with_trl.py": ["--length", "256", "--steps", "2", "--rope", "yarn:2", "--out", "{out}"],
    "how_far_does_it_see.py": ["--lengths", "300", "--depths", "2"],
    "add_your_own_pattern.py": [],
    "patch_in_a_notebook.py": [],
    "llama_to_hybrid.py": [],
}


def test_every_example_is_run():
    assert {p.name for p in (ROOT / "examples").glob("*.py")} == set(ARGUMENTS)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random Llama with a byte-level tokenizer, as a local folder."""
    folder = tmp_path_factory.mktemp("tiny")
    make_byte_tokenizer().save_pretrained(folder)
    make_tiny(max_position_embeddings=512).save_pretrained(folder)
    return folder


@pytest.fixture
def registry():
    """A pattern that an example defines is gone after it."""
    known = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(known)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("name", ARGUMENTS)
def test_example(name, tiny, tmp_path, monkeypatch, capsys):
    if "trl" in name:
        pytest.importorskip("trl", reason="needs the package trl")
    arguments = [argument.format(out=tmp_path / "out") for argument in ARGUMENTS[name]]
    monkeypatch.setattr(sys, "argv", [name, str(tiny), *arguments])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    assert capsys.readouterr().out.strip()
