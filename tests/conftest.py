"""What every test gets: no network, one thread (the models are tiny), and no GPU tests without a GPU."""

from __future__ import annotations

import gc
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

gc.disable()  # until the tests are collected

# On CI the same examples every time; elsewhere new ones, so that they keep looking.
settings.register_profile("here", max_examples=50)
settings.register_profile("ci", max_examples=50, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci" if os.environ.get("CI") else "here")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu") is not None:  # `keywords` has the names of folders too
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    """Modules and tests stay to the end, so no collection of garbage need walk through them: it takes a second."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="module")
def imports_stay() -> None:
    """The same for what the tests of the last file imported as they went: whoever measures memory collects often."""
    pytest_collection_finish()


@pytest.fixture
def eager_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention as its own dense formula: the same block masks and mask function, and no minute of compiling."""
    import torch.nn.attention.flex_attention as torch_flex

    from hf_longctx.attention import flex

    def run(query, key, value, mask, scale):
        return torch_flex.flex_attention(query, key, value, block_mask=mask, scale=scale, enable_gqa=True)

    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(flex, "_run", run)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process: (exit code, stdout, stderr)."""
    from hf_longctx.cli import main

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hf-longctx", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capsys.readouterr()
        return int(exit_.value.code or 0), out, err

    return call
