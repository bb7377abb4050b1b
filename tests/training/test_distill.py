"""`distill` from beginning to end on a tiny model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import hf_longctx as lc
from hf_longctx.cli import distill as command
from hf_longctx.hf.mixers import mixers
from hf_longctx.measure import haystack
from hf_longctx.measure.needle import run_needle
from hf_longctx.training import distill, distillation_run
from hf_longctx.training.phases import DEFAULT
from tiny_model import make_tiny

SMALL = {
    "mamba": "0,2", "data": "prose", "length": 64, "batch": 2, "held_out": 512, "needle": (), "progress": False,
}  # fmt: skip


def lively(**more):
    """With weights large enough that the attention matters."""
    return make_tiny(initializer_range=0.2, **more)


@pytest.fixture(scope="module")
def lively_folder(tmp_path_factory, byte_tokenizer):
    folder = tmp_path_factory.mktemp("lively")
    lively().save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    return folder


def losses(record) -> list[list[float]]:
    return [[row["loss"] for row in stage["log"]] for stage in record["stages"]]


def test_a_healed_model_is_better_and_its_teacher_untouched(tmp_path, byte_tokenizer, monkeypatch, capsys):
    monkeypatch.setattr(distillation_run, "_DEPTHS", 1)
    monkeypatch.setattr(distillation_run, "_TRIALS", 1)
    model, stock, ids = lively(), lively(), torch.arange(3, 63)[None]
    before = {name: tensor.clone() for name, tensor in stock.state_dict().items()}
    asked = SMALL | {"stages": "align:30:1e-2,match:30:1e-2", "needle": (768,), "micro_batch": 2, "progress": True}
    asked |= {"out": tmp_path, "attention": "window:200+global:4"}
    record = distill(model, byte_tokenizer, **asked)
    with pytest.raises(ValueError, match=r"holds this run, finished.*from_pretrained"):
        distill(lively(), byte_tokenizer, **asked)
    align, match = losses(record)
    assert sum(align[-5:]) < 0.8 * sum(align[:5])
    assert sum(match[-5:]) < sum(match[:5])
    quality = record["quality"]
    told = capsys.readouterr().err
    assert all(f"{name}: perplexity {quality[name]['perplexity']:.4g}" in told for name in ("converted", "healed"))
    assert all(f"{name:<12}      768 tokens" in told for name in ("converted", "as-loaded"))
    assert quality["healed"]["kl"] < 0.7 * quality["converted"]["kl"]
    assert quality["stock"]["tokens"] == quality["healed"]["tokens"] == 504
    assert {name: rows[0]["n"] for name, rows in record["needle"].items()} == dict.fromkeys(quality, 1)
    assert record["trained"]["layers"] == [0, 2]
    assert record["trained"]["parameters"] == sum(p.numel() for m in mixers(model).values() for p in m.parameters())
    loaded = lc.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert "until it is healed" not in str(lc.describe(loaded))
    card = (tmp_path / "README.md").read_text()
    assert all(
        word in card
        for word in (
            "healed (this model)",
            "`align`",
            "curves.png",
            "0/1 (0%",
            "mamba=0,2, attention=window:200+global:4",
        )
    )
    assert "base_model" not in card  # what the model is called here is no hub id
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert not (tmp_path / "stages").exists()
    assert all(p.requires_grad for p in model.parameters())
    trained = mixers(model)
    run_needle(model, byte_tokenizer, lengths=(768,), depths=1, stock=False, progress=False)
    assert mixers(model) == trained  # measuring does not convert it afresh
    lc.unpatch(model)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_losses(tmp_path, lively_folder):
    """SIGKILL in the second stage; mixers, optimizer, schedule and data order must all come back."""
    given = SMALL | {"stages": "align:3:1e-2,match:12:1e-2,text:2", "device": "cpu", "save_every": 2, "held_out": 128}
    whole = distill(str(lively_folder), out=tmp_path / "whole", **given)
    out = tmp_path / "killed"
    options = [
        f"--{key.replace('_', '-')}={value}" for key, value in given.items() if key not in ("needle", "progress")
    ]
    child = subprocess.Popen(
        [sys.executable, "-m", "hf_longctx", "distill", str(lively_folder), f"--out={out}", "--needle=none", *options],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (out / "stages" / "1" / "checkpoint-4" / "whole").exists():
        assert child.poll() is None, child.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    printed = child.communicate()[1]
    assert "stage 2 of 3 (match)" in printed
    assert "tokens/s" in printed
    assert "left" in printed
    assert not json.loads((out / "distill.json").read_text())["finished"]
    record = distill(str(lively_folder), out=out, **given)
    assert losses(record) == losses(whole)
    assert [row["step"] for row in record["stages"][1]["log"]] == list(range(1, 13))
    assert record["quality"] == whole["quality"]
    ends = [lc.from_pretrained(folder).state_dict() for folder in (out, tmp_path / "whole")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert distill(str(lively_folder), out=out, **given) == record  # nothing is done twice
    with pytest.raises(ValueError, match="seed=0, and this one has 1"):
        distill(str(lively_folder), out=out, **given | {"seed": 1})


def test_in_bfloat16_small_updates_count(tmp_path, byte_tokenizer):
    model = lively().to(torch.bfloat16)
    record = distill(model, byte_tokenizer, out=tmp_path, **SMALL | {"stages": "align:6:1e-3"})
    assert len(set(losses(record)[0])) == 6
    mixer = mixers(model)[0]
    assert (mixer.q_proj.weight.dtype, mixer.A_log.dtype) == (torch.bfloat16, torch.float32)
    assert record["quality"]["healed"]["kl"] != record["quality"]["converted"]["kl"]


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_batch(tmp_path, lively_folder):
    """The launched pair shares each batch; the one process computes it at once."""
    given = SMALL | {"stages": "align:3:1e-3,match:3:1e-3", "device": "cpu", "held_out": 128}
    alone = distill(str(lively_folder), out=tmp_path / "one", micro_batch=2, **given)
    out = tmp_path / "two"
    options = [
        f"--{key.replace('_', '-')}={value}" for key, value in given.items() if key not in ("needle", "progress")
    ]
    launch = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "hf_longctx", "distill",
        str(lively_folder), f"--out={out}", "--needle=none", *options,
    ]  # fmt: skip
    done = subprocess.run(
        launch, capture_output=True, text=True, timeout=280, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((out / "distill.json").read_text())
    assert record["finished"]
    torch.testing.assert_close(losses(record), losses(alone), atol=1e-4, rtol=1e-4)
    assert record["quality"]["healed"]["kl"] == pytest.approx(alone["quality"]["healed"]["kl"], rel=1e-3)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"stages": "aling:3"}, "objectives align, match, text"),
        ({"stages": "align:0"}, "at least 1 step"),
        ({"stages": "match:2:0"}, "learning rate above 0"),
        ({"batch": 3, "micro_batch": 2}, "multiple of 2"),
        ({"length": 1}, "length is 1"),
        ({"data": "no/such/thing"}, "cannot be opened"),
        ({"mamba": "0,9"}, "matches no layer"),
        ({"mamba": "*"}, "leaves no attention layer"),
        ({"attention": "windw:4"}, "windw"),
        ({"rope": "yarn:0.5"}, "factor"),
        ({"own_windows": "keep"}, "own_windows"),
        ({"report_to": "tensorbored"}, "report_to is 'tensorbored'"),
        ({"needle": (20,)}, "needle: nothing can be asked at 20 tokens"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path, byte_tokenizer, given, words):
    with pytest.raises(ValueError, match=words):
        distill(lively(), byte_tokenizer, out=tmp_path / "run", **SMALL | given)
    assert not (tmp_path / "run").exists()


def test_a_patched_model_and_a_foreign_folder_are_refused(tmp_path, byte_tokenizer):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no run of distill"):
        distill(lively(), byte_tokenizer, out=tmp_path, **SMALL)
    with pytest.raises(ValueError, match="tokenizer is None"):
        distill(lively(), out=tmp_path / "run", **SMALL)
    with pytest.raises(ValueError, match=r"is patched.*unpatch"):
        distill(lc.patch(lively(), mamba="0"), byte_tokenizer, out=tmp_path / "run", **SMALL)
    with pytest.raises(ValueError, match="float16"):
        distill(lively().half(), byte_tokenizer, out=tmp_path / "run", **SMALL)
    spread = lively()
    spread.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    with pytest.raises(ValueError, match=r"several devices \(0, 1\).*accelerate launch"):
        distill(spread, byte_tokenizer, out=tmp_path / "run", **SMALL)


def test_the_command_shows_the_three_models(run, lively_folder, tmp_path, monkeypatch):
    assert command._STAGES == DEFAULT
    out = tmp_path / "run"
    code, shown, err = run(
        "distill", str(lively_folder), "--mamba=1", "--data=prose", f"--out={out}", "--stages=align:2", "--length=64",
        "--batch=1", "--held-out=128", "--needle=none", "--device=cpu",
    )  # fmt: skip
    assert code == 0, err
    for word in ("original", "converted, not trained", "healed (this model)", "the mixers of these layers"):
        assert word in shown
    assert err.count("tokens/s") == 2
    assert "hf-longctx distill" in (out / "README.md").read_text()
    monkeypatch.setattr(haystack, "_king_james_file", lambda: None)  # the default text, without its package
    code, _, err = run("distill", str(lively_folder), "--mamba=1", f"--out={tmp_path / 'other'}", "--device=cpu")
    assert (code, 'pip install "hf_longctx[text]"' in err) == (2, True)
    code, _, err = run("distill", str(lively_folder), "--mamba=1", "--data=prose", f"--out={out}", "--length=1q")
    assert code == 2
    assert "--length must be a length" in err
