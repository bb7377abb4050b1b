"""The tiny model and its tokenizer, in memory and as a folder; the command line in this process."""

from __future__ import annotations

import sys

import pytest

from tiny_model import make_byte_tokenizer, make_tiny


@pytest.fixture(scope="session")
def byte_tokenizer():
    return make_byte_tokenizer()


@pytest.fixture
def tiny():
    return make_tiny()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, byte_tokenizer):
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny().save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process: (exit code, stdout, stderr)."""
    from hf_longctx.cli import main

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hf-longctx", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capsys.readouterr()
        return int(exit_.value.code or 0), out, err

    return call
