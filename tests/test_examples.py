"""The examples run, on a tiny model saved to disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("name", ARGUMENTS)
def test_example(name, tiny, tmp_path):
    if "trl" in name:
        pytest.importorskip("trl", reason="needs the package trl")
    arguments = [argument.format(out=tmp_path / "out") for argument in ARGUMENTS[name]]
    command = [sys.executable, str(ROOT / "examples" / name), str(tiny), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
