"""The tiny model and its tokenizer, in memory and as a folder."""

from __future__ import annotations

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
