"""The `rope` command: its table, its plot, its JSON document."""

import json
import math
import re

import pytest

from hf_longctx.rope import YaRN
from rope_cases import llama


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Run `rope` as a command line in an empty folder that holds one config, named `tiny`."""
    import typer
    from typer.testing import CliRunner

    from hf_longctx.cli.rope import rope as view

    llama({"rope_type": "default", "rope_theta": 1e5}, 8192).save_pretrained(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    app = typer.Typer()
    app.command()(view)
    return lambda *arguments: CliRunner().invoke(app, ["tiny", *arguments])


def test_command_prints_a_table_and_saves_a_plot(command, tmp_path):
    result = command("--rope", "yarn:4", "--out", "rope.png")
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines() if line.strip()[:1].isdigit()]
    assert [rows[0][0], rows[-1][0]] == ["0", "31"]
    assert len(rows) == 17
    assert rows[0][3] == "1.000"
    assert rows[-1][3] == "4.000"
    assert "trained on 8,192 tokens; window 8,192 before, 32,768 after" in result.stdout
    assert "cos and sin times 1 before, 1.13863 after" in result.stdout
    assert "within 32,768 tokens: 12 of 32 before, 0 after" in result.stdout
    assert (tmp_path / "rope.png").read_bytes().startswith(b"\x89PNG")


def test_command_prints_one_json_document(command, tmp_path):
    result = command("--rope", "yarn:to=32k", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["rope"] == "yarn:4"
    assert document["max_positions"] == {"before": 8192, "after": 32768}
    wavelength = [2 * math.pi / f for f in YaRN(4).inv_freq(64, 1e5, 8192).tolist()]
    assert [pair["after"] for pair in document["pairs"]] == pytest.approx(wavelength, rel=1e-12)
    assert document["plot"] is None
    assert not (tmp_path / "rope.png").exists()
    assert json.loads(command("--rope", "ntk:2", "--json", "--out", "ntk.png").stdout)["plot"] == "ntk.png"
    assert (tmp_path / "ntk.png").read_bytes().startswith(b"\x89PNG")


def test_command_shows_a_length_dependent_scaling_at_a_length(command):
    default = json.loads(command("--rope", "dynamic", "--json").stdout)
    assert default["length"] == 4 * 8192
    assert default["pairs"][-1]["ratio"] == pytest.approx(4)
    asked = json.loads(command("--rope", "dynamic", "--length", "16k", "--json").stdout)
    assert asked["pairs"][-1]["ratio"] == pytest.approx(2)
    assert "shown for 16,384 tokens" in command("--rope", "dynamic", "--length", "16k").stdout


def test_command_without_matplotlib_says_how_to_get_it(command, tmp_path, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else find(name, *a))
    result = command("--rope", "yarn:4", "--out", "rope.png")
    assert 'pip install "hf_longctx[report]"' in str(result.exception)
    result = command("--rope", "yarn:4")
    assert result.exit_code == 0, result.output
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--rope", "yarm:4"), "did you mean 'yarn'"),
        (("--rope", "yarn:to=4k"), "target 4096 is below the trained length 8192"),
        (("--rope", "dynamic", "--length", "long"), "--length must be a length in tokens.*'long'"),
        (("--rope", "yarn:4", "--out", "nowhere/rope.png"), "there is no folder nowhere"),
        (("--rope", "yarn:4", "--out", "rope.docx"), "an image's ending.*png"),
    ],
)
def test_command_refuses_bad_input(command, tmp_path, arguments, says):
    result = command(*arguments)
    assert isinstance(result.exception, ValueError)
    assert re.search(says, str(result.exception))
    assert not list(tmp_path.rglob("*.png"))
