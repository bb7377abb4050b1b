"""The examples run, on a tiny model saved to disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tiny_model import make_byte_tokenizer, make_tiny

ROOT = Path(__file__).parents[1]
ARGUMENTS = {
    "how_far_does_it_see.py": ["--lengths", "300", "--depths", "2"],
    "add_your_own_pattern.py": [],
    "patch_in_a_notebook.py": [],
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
def test_example(name, tiny):
    command = [sys.executable, str(ROOT / "examples" / name), str(tiny), *ARGUMENTS[name]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
