"""The tiny model and its tokenizer, in memory and as a folder."""

from __future__ import annotations

import pytest

from hf_longctx.training import corpus, extension_run
from tiny_model import make_byte_tokenizer, make_tiny


@pytest.fixture(autouse=True)
def little_is_read(request, monkeypatch):
    """Documents of a tenth, and 512 tokens for the loss to compare with; not where other processes read too."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(corpus, "_PROSE_SENTENCES", 100)
        monkeypatch.setattr(extension_run, "_REFERENCE_TOKENS", 512)


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
