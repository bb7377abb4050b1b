"""`hf-longctx needle`: lengths as written, a table or one JSON document, lines as lengths are done."""

import json

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import hf_longctx as lc
from hf_longctx.cli.needle import needle, parse_lengths
from hf_longctx.hf import loading
from hf_longctx.measure.needle_lines import NeedleLines

ARGUMENTS = ["tiny", "--variant", "linear2: rope=linear:2", "--lengths", "200,400", "--depths", "2"]


@pytest.fixture
def app(model, tokenizer, monkeypatch):
    monkeypatch.setattr(loading, "load_model", lambda name, dtype=None, device=None: (model, tokenizer))
    made = typer.Typer()
    made.command()(needle)
    return made


@pytest.fixture
def call(app):
    return lambda *arguments: CliRunner().invoke(app, [*ARGUMENTS, *arguments], catch_exceptions=True)


def test_a_run_prints_lines_then_a_table_then_the_page(call, tmp_path):
    result = call("--out", str(tmp_path / "run"))
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stderr.splitlines() if "found, controls: wrong-key" in line]
    assert [line.split()[:2] for line in lines] == [
        ["stock", "200"],
        ["stock", "400"],
        ["linear2", "200"],
        ["linear2", "400"],
    ]
    assert "linear2" in result.stdout
    assert "saved against one prefill a cell" in result.stdout
    assert str(tmp_path / "run" / "report.html") in result.stdout


def test_json_is_one_document_and_no_stock_leaves_stock_out(call):
    summary = json.loads(call("--json", "--no-stock").stdout)
    assert list(summary["variants"]) == ["linear2"]
    assert summary["model"] == "tiny"
    assert summary["settings"]["lengths"] == [200, 400]


def test_a_model_saved_with_mamba_layers_runs_alone(app, model, tokenizer, tmp_path, monkeypatch):
    with lc.patched(model, mamba="1"):
        model.save_pretrained(tmp_path)
    hybrid = lc.from_pretrained(tmp_path)
    monkeypatch.setattr(loading, "load_model", lambda name, dtype=None, device=None: (hybrid, tokenizer))
    words = ["tiny", "--lengths", "200", "--depths", "1", "--no-damage", "--json"]
    assert list(json.loads(CliRunner().invoke(app, [*words, "--no-stock"]).stdout)["variants"]) == ["as-loaded"]
    assert "leave stock out (--no-stock" in str(CliRunner().invoke(app, words).exception)


def test_ctrl_c_keeps_what_was_found(call, tmp_path, monkeypatch):
    def stop(self, row):
        raise KeyboardInterrupt

    monkeypatch.setattr(NeedleLines, "__call__", stop)
    result = call("--out", str(tmp_path))
    assert result.exit_code == 130
    assert "the same command goes on from there" in result.stderr
    assert (tmp_path / "summary.json").is_file()


@pytest.mark.parametrize(
    "change", [["--lengths", "1q"], ["--variant", "x"], ["--haystack", "nowhere"], ["--style", "x"]]
)
def test_a_slip_is_found_before_the_model_runs(call, change):
    assert isinstance(call(*change).exception, ValueError)


@given(st.lists(st.tuples(st.integers(1, 4096), st.sampled_from(["", "k", "K", "m"])), min_size=1, max_size=5))
def test_lengths_are_in_powers_of_two(parts):
    scale = {"": 1, "k": 2**10, "K": 2**10, "m": 2**20}
    assert parse_lengths(", ".join(f"{n}{suffix}" for n, suffix in parts)) == [
        n * scale[suffix] for n, suffix in parts
    ]


@pytest.mark.parametrize("text", ["", "1k,,2k", "x", "1.5k", "-1"])
def test_what_is_no_length_is_refused(text):
    with pytest.raises(ValueError, match="--lengths .* is no list of lengths"):
        parse_lengths(text)


def test_damage_is_a_line_a_variant_and_part_of_the_json_unless_left_out(call):
    said = call().stdout
    assert "stock: perplexity" in said
    assert "linear2: KL to stock" in said
    assert "KL to stock" not in call("--no-damage").stdout
    damage = json.loads(call("--json").stdout)["damage"]
    assert [[part["stop"] for part in damage[name]] for name in ("stock", "linear2")] == [[200, 400]] * 2
    assert all(part["kl"] >= 0 for part in damage["linear2"])
