"""The command line: what it prints, its JSON, and one sentence with exit code 2 for a user's mistake."""

from __future__ import annotations

import json
import runpy
import sys

import pytest
import torch

import hf_longctx as lc
from families import FAMILIES, build, tokens
from hf_longctx.attention import BACKENDS, flash, flex
from hf_longctx.cli.env import _backend
from hf_longctx.cli.shared import asked_limits
from hf_longctx.measure.tasks import names as task_names
from hf_longctx.patterns import Full, SlidingWindow, names, parse, presets
from hf_longctx.patterns.base import REGISTRY


@pytest.fixture
def tokenizer():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>")))


def test_as_a_module(monkeypatch, capsys):
    """What `python -m hf_longctx` runs, in this process."""
    monkeypatch.setattr(sys, "argv", ["hf_longctx", "patterns", "win:3"])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_module("hf_longctx", run_name="__main__", alter_sys=True)
    out, err = capsys.readouterr()
    assert (exit_.value.code, out) == (2, "")
    assert err.startswith("error: unknown attention pattern 'win'")


def test_patterns_draws_all_and_one(run):
    document = json.loads(run("patterns", "--json")[1])
    assert {p["text"].split(":")[0] for p in document["pictures"]} == set(names())
    listed = {p["name"]: p for p in document["patterns"]}
    assert set(listed) == {*names(), *presets()}
    assert listed["window"]["shares"]["4096"] == SlidingWindow(1024).count(4096) / Full().count(4096)
    assert (listed["window"]["keeps"], listed["strided"]["keeps"]) == (1023, None)
    one = json.loads(run("patterns", "window:2+global:1", "--size", "4", "--json")[1])["pictures"][0]
    assert one["grid"] == ["# . . .", "# # . .", "# # # .", "# . # #"]
    assert (one["active"], one["causal"], one["caption"]) == (9, 10, "9 of 16 cells, 1.1x fewer than causal")
    assert "window:2" in run("patterns", "window:2")[1]
    drawn, table = run("patterns", "--draw")[1], run("patterns")[1]
    assert all(name in drawn and name in table for name in names())


def test_tasks_are_listed_and_rendered(run):
    listed = json.loads(run("tasks", "--json")[1])["tasks"]
    assert [entry["name"] for entry in listed] == list(task_names())
    assert all(entry["example"]["expected"][0] for entry in listed)  # over a sample of ours where a file is needed
    shown = run("tasks")[1]
    assert all(name in shown for name in task_names())
    assert shown.count("needs --files to be scored") == 2
    assert (
        "has no prompt of this length" in run("tasks", "--length", "24k")[1]
    )  # the sample is short, the list goes on
    (one,) = json.loads(run("tasks", "niah_single_2", "--length", "512", "--depth", "0", "--json")[1])["tasks"]
    (value,) = one["example"]["expected"]
    rendered = run("tasks", "niah_single_2", "--length", "512", "--depth", "0")[1]
    assert one["example"]["text"] in rendered
    assert f" is {value}." in rendered
    assert one["example"]["overlap"] == 1.0


@pytest.mark.parametrize("suffix", [".png", ".html"])
def test_the_gallery_is_written(suffix, tmp_path, run):
    path = tmp_path / f"gallery{suffix}"
    assert run("patterns", "--out", str(path))[0] == 0
    data = path.read_bytes()
    if suffix == ".png":
        assert data.startswith(b"\x89PNG")
    else:
        for name in names():
            assert f"<code>{name}".encode() in data
        assert b"of 576 cells" in data
        assert b"://" not in data
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_every_pattern_says_what_it_is():
    """A pattern of ours has a rule, a paper and a usual size; one of a user's needs none of it."""
    for name, cls in REGISTRY.items():
        if cls.__module__.startswith("hf_longctx."):
            assert cls.sees
            assert "arXiv" in cls.source
            assert str(parse(cls.typical)) == cls.typical
            assert cls.name == name


def test_env(run):
    document = json.loads(run("env", "--json")[1])
    assert document["backends"]["auto"].startswith("usable")
    assert "needs a CUDA device" in document["backends"]["flash"]
    assert set(document["backends"]) == set(BACKENDS)
    assert document["backends"]["tiled"] == "usable on cpu"
    assert {"flex", "triton", "flash-attn"} <= set(document["optional"])


def test_env_knows_forward_only_and_what_is_missing(monkeypatch):
    """Both are asked of the backends themselves."""
    assert _backend("flex", torch.device("cpu")) == "usable on cpu, forward only"
    monkeypatch.setattr(flex, "_no_compiler", lambda device: "there is no compiler")
    assert "there is no compiler" in _backend("flex", torch.device("cuda"))
    monkeypatch.setattr(flash, "_no_kernel", lambda device: None)
    monkeypatch.setattr(flash, "_kernel", lambda device: flash._Kernel("some kernel", lambda *_: _))
    assert _backend("flash", torch.device("cuda")) == "usable on cuda by some kernel"


def test_models(run):
    models = json.loads(run("models", "--json")[1])
    assert set(models["tested"]) >= {"Llama", "Gemma 3"}
    assert "llama-3.1-8b" in models["public"]
    assert {row["suite"] for row in models["published"]} == {"ruler", "nolima", "babilong"}
    shown = run("models", "qwen3-14b")[1]
    assert ">128K" in shown
    assert "64K !" in shown


@pytest.mark.parametrize("words", [("models",), ("wall", "llama-3.1-8b", "--attention", "window:1024+global:4")])
def test_tables_fit_a_narrow_terminal(words, run, monkeypatch, tmp_path):
    """Columns go, but no name and no number is cut or folded."""
    monkeypatch.chdir(tmp_path)
    shown = {}
    for width in (80, 300):
        monkeypatch.setenv("COLUMNS", str(width))
        code, shown[width], err = run(*words)
        assert code == 0, err
    assert "…" not in shown[80]
    rows = [line.strip() for line in shown[300].splitlines() if line.startswith(" ") and "  " in line.strip()]
    assert len(rows) > 20
    for row in rows:
        assert any(line.strip().startswith(row.split("  ")[0]) for line in shown[80].splitlines()), row


def test_wall_works_from_a_config_alone(tmp_path, run):
    """Bytes are integers, every method has a row a length, and the plot is a PNG."""
    build("mistral").config.save_pretrained(tmp_path / "model")
    plot = tmp_path / "wall.png"
    words = ("wall", str(tmp_path / "model"), "--attention", "window:8", "--attention", "0=full;*=block:4", "--memory")
    code, out, err = run(*words, "1MB", "--lengths", "1k,64", "--out", str(plot), "--json")
    assert code == 0, err
    document = json.loads(out)
    assert [m["name"] for m in document["methods"]] == ["standard", "flash", "window:8", "0=full;*=block:4", "mamba2"]
    for method in document["methods"]:
        assert [row["tokens"] for row in method["rows"]] == [64, 1024]
        assert all(isinstance(value, int) for row in method["rows"] for value in row.values())
    assert document["machine"]["memory"] == 10**6
    assert document["methods"][0]["fits"]["matrix_bytes"] == 707
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_wall_prints_every_pattern_and_preset(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = ("wall", "smollm2-135m", "--lengths", "256,512", "--memory", "l4")
    code, out, err = run(*words)
    assert code == 0, err
    for name in ("standard: one matrix", "flash", "mamba2", "longnet", "window:1024", "NVIDIA L4"):
        assert name in out
    assert "mamba2: fewer bytes of state than of keys and values from" in out
    assert list(tmp_path.iterdir()) == []  # no file that nobody asked for
    assert "plot: wall.png" in run(*words, "--out", "wall.png")[1]
    assert (tmp_path / "wall.png").is_file()


@pytest.mark.parametrize("family", FAMILIES)
def test_describe_reads_only_the_config(family, tmp_path, run):
    build(family).config.save_pretrained(tmp_path)
    arguments = ("describe", str(tmp_path), "--attention", "window:8+global:2", "--rope", "yarn:4", "--json")
    code, out, err = run(*arguments)
    assert code == 0, err
    document = json.loads(out)
    code, out, err = run(*arguments, "--backend", "tiled")
    assert code == 0, err
    assert {layer["backend"] for layer in json.loads(out)["layers"]} == {"tiled"}
    assert document["rope"] == "yarn:4"
    assert document["max_positions"] == 256
    assert len(document["layers"]) == 3


def test_convert_saves_what_loads_without_the_original(tmp_path, run, tokenizer):
    model, out = build("qwen3"), tmp_path / "new" / "hybrid"
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    arguments = ("--mamba", "1", "--attention", "window:6", "--out", str(out))
    code, shown, err = run("convert", str(tmp_path / "model"), *arguments)
    assert code == 0, err
    assert "1 Mamba-2 layer: " in shown
    assert "until it is healed" in shown
    lc.patch(model, mamba="1", attention="window:6")
    ids = tokens(1, 20)
    loaded, _ = lc.load_model(str(out))
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert {p.name for p in out.parent.iterdir()} == {"hybrid"}
    assert run("describe", str(out))[1].strip() == str(lc.describe(model))
    assert "holds something" in run("convert", str(tmp_path / "model"), *arguments)[2]
    again = ("convert", str(out), "--mamba", "0", "--out", str(tmp_path / "x"))
    assert "was saved patched: convert the original" in run(*again)[2]
    assert not (tmp_path / "x").exists()
    document = json.loads(run("convert", str(tmp_path / "model"), *arguments[:-1], str(tmp_path / "y"), "--json")[1])
    assert document["description"] == json.loads(json.dumps(lc.describe(model).to_dict()))


@pytest.mark.parametrize(
    "plan",
    [{"attention": "1=window:6;*=full", "rope": "dynamic:1"}, {"mamba": "1,init=random", "attention": "window:4"}],
    ids=["attention", "mamba"],
)
def test_describe_of_a_patched_checkpoint_shows_its_plan(plan, tmp_path, run):
    model = lc.patch(build("llama"), **plan)
    model.save_pretrained(tmp_path)
    assert run("describe", str(tmp_path))[1].strip() == str(lc.describe(model))


def test_a_limit_may_name_a_folder_that_was_saved_patched(tmp_path):
    lc.patch(build("llama"), attention="window:8").config.save_pretrained(tmp_path)
    [limit] = asked_limits(["as-loaded:effective=1k"], str(tmp_path), [], stock=True, kind="needle")
    assert limit.variant == "as-loaded"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders of a model and of a patched one, without weights, and one that is not there."""
    folder = tmp_path_factory.mktemp("places")
    build("llama").config.save_pretrained(folder / "model")
    lc.patch(build("llama"), attention="window:8").config.save_pretrained(folder / "patched")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    return {name: folder / name for name in ("model", "patched", "adapter", "nowhere")}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("describe", "{model}", "--attention", "windw:8"), "did you mean 'window'"),
        (("describe", "{model}", "--rope", "yarn:0.5"), "0.5"),
        (("describe", "{nowhere}"), "cannot be loaded"),
        (("describe", "{adapter}"), "is an adapter alone"),
        (("patterns", "window:x"), "whole number"),
        (("patterns", "--size", "0"), "at least 1"),
        (("patterns", "--out", "gallery.svg"), "must end in .png or .html"),
        (("report", "{nowhere}"), "nowhere"),
        (("rope", "{model}", "--rope", "yarrn:4"), "did you mean 'yarn'"),
        (("needle", "{model}", "--lengths", "1x"), "1x"),
        (("effective", "{model}", "--task", "niah_single1"), "did you mean 'niah_single_1'"),
        (("effective", "{model}", "--budget", "soon"), "such as 30m"),
        (("effective", "{model}", "--confidence", "95"), "such as 0.95"),
        (("effective", "{model}", "--files", "squad.json"), "TASK=FILE"),
        (("tasks", "niah_single1"), "did you mean 'niah_single_1'"),
        (("tasks", "passkey", "--length", "20"), "needs more than 20 tokens"),
        (("tasks", "passkey", "--length", "1k,2k"), "give one length"),
        (("tasks", "qa_1", "--length", "24k"), "give more text"),
        (("tasks", "qa_1", "--files", "{nowhere}"), "SQuAD"),
        (("effective", "{model}", "--task", "qa_1"), "SQuAD"),
        (("effective", "{model}", "--fail-under", "efective=8k"), "did you mean 'effective'"),
        (("effective", "{model}", "--fail-under", "as-loaded:effective=8k"), "the run has stock"),
        (("effective", "{patched}", "--fail-under", "as-loadd:effective=8k"), "names the variant 'as-loadd'"),
        (
            ("needle", "{model}", "--fail-under", "as-loaded:recall=0.8", "--no-stock", "--rope", "yarn:2"),
            "'as-loaded'",
        ),
        (("needle", "{model}", "--fail-under", "recall=2"), "is no share"),
        (("needle", "{model}", "--variant", "x"), "variant 'x'"),
        (("needle", "{model}", "--dtype", "float8"), "float32, bfloat16, float16"),
        (("needle", "{model}", "--device", "gpu7"), "device is 'gpu7'"),
        (("needle", "{model}", "--device", "cuda:99"), "CUDA devices are usable here"),
        (("needle", "{nowhere}", "--trials", "0"), "--trials 0"),
        (("needle", "{nowhere}", "--values", "hex"), "digits, words, uuid"),
        (("needle", "{nowhere}", "--needles", "many"), "shared, single"),
        (("needle", "{nowhere}", "--style", "plain"), "prefix, chat, base"),
        (("describe", "{patched}", "--rope", "yarn:2"), "was saved patched"),
        (("describe", "{patched}", "--backend", "tiled"), "was saved patched"),
        (("describe", "{model}", "--backend", "tiled"), "are for a pattern: give --attention"),
        (("describe", "{model}", "--attention", "window:8", "--backend", "tilde"), "tiled"),
        (("tasks", "passkey", "--length", "1x"), "--length '1x' is no list of lengths"),
        (("describe", "{model}", "--mamba", "*"), "leaves no attention layer among 3"),
        (("describe", "{model}", "--mamba", "1", "--attention", "1=full"), "no attention pattern can replace"),
        (("convert", "{model}", "--mamba", "1", "--out", "{model}"), "holds something already"),
        (("convert", "{nowhere}", "--mamba", "1", "--out", "{nowhere}/x"), "cannot be loaded"),
        (("wall", "{nowhere}"), "llama-3.1-8b"),
        (("wall", "{model}", "--memory", "h10"), "did you mean 'h100'"),
        (("wall", "{model}", "--attention", "windw:8"), "did you mean 'window'"),
        (("wall", "{model}", "--mamba", "99"), "matches no layer"),
        (("wall", "{model}", "--lengths", "1k", "--out", "{nowhere}/x.png"), "a plot needs two lengths"),
        (("wall", "{model}", "--lengths", "1k,2k", "--out", "{nowhere}/x.png"), "there is no folder"),
        (("wall", "{model}", "--lengths", "1k,2k", "--out", "{model}/x.docx"), "an image's ending"),
        (("cost", "{model}", "--lengths", "1x"), "1x"),
        (("cost", "{model}", "--variant", "x"), "variant 'x'"),
        (("cost", "{nowhere}"), "cannot be loaded"),
        (("models", "nobody"), "no published model"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments, sentence, places, run):
    code, out, err = run(*(a.format(**places) for a in arguments))
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.startswith("error: ")
    assert not places["nowhere"].exists()


def test_help_names_every_command(run):
    shown = run("--help")[1]
    for command in (
        "needle",
        "effective",
        "tasks",
        "cost",
        "wall",
        "convert",
        "extend",
        "plan",
        "distill",
        "report",
        "rope",
        "describe",
        "patterns",
        "models",
        "env",
    ):
        assert command in shown
