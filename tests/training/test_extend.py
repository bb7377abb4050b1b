"""`extend` from beginning to end on a tiny model."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from collections import namedtuple

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations import integration_utils as integrations

import hf_longctx as lc
from families import build
from hf_longctx.measure import needle, runs
from hf_longctx.training import RECIPES, corpus, extend, extension_run, held_out, load_adapter, progress
from hf_longctx.training.corpus import open_corpus
from hf_longctx.training.dataset import held_out_ids
from hf_longctx.training.guards import Guards
from page_reader import read
from tiny_model import make_tiny

SMALL = {"data": "prose", "to": 128, "steps": 3, "batch": 2, "progress": False, "device": "cpu"}
NAMES = ["base", "scaled-untrained", "trained"]
QUICK = SMALL | {"measure": False}


def losses(record) -> list[float]:
    return [row["loss"] for stage in record["stages"] for row in stage["log"]]


@pytest.mark.parametrize("tune", ["lora", "lora-plus", "full"])
def test_the_result_loads_in_plain_transformers(tmp_path, tiny_folder, tune):
    record = extend(str(tiny_folder), out=tmp_path, tune=tune, learning_rate=1e-2, **SMALL)
    assert record["finished"]
    assert record == json.loads((tmp_path / "extend.json").read_text())
    assert len(losses(record)) == 3
    assert losses(record)[-1] < losses(record)[0]
    assert list(record["perplexity"]) == NAMES
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.max_position_embeddings == 128
    assert model.config.rope_parameters["rope_type"] == "yarn"
    assert model.config.rope_parameters["factor"] == 2
    assert model.config.rope_parameters["original_max_position_embeddings"] == 64
    assert not lc.is_patched(model)
    assert model.config.use_cache
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == 128
    card = (tmp_path / "README.md").read_text()
    assert all(word in card for word in ("yarn:2", "generated prose", "scaled, not trained"))
    assert "base_model" not in card  # a folder of this machine is none
    assert str(tiny_folder.parent) not in card
    stock = AutoModelForCausalLM.from_pretrained(tiny_folder)
    ids = torch.arange(3, 103)[None]
    with torch.no_grad():
        logits = model(ids).logits
        assert (logits - stock(ids).logits).abs().max() > 1e-2
        if tune != "full":
            adapted = load_adapter(lc.patch(stock, rope="yarn:2"), tmp_path / "adapter").eval()
            torch.testing.assert_close(adapted(ids).logits, logits, atol=1e-5, rtol=1e-4)
        lc.patch(model, attention="window:16+global:2")  # trained in full, run under another pattern
        assert (model(ids).logits - logits).abs().max() > 1e-4


def test_one_page_tells_all_three_models(tmp_path, tiny_folder, monkeypatch, capsys):
    """Needles, perplexity, divergence, losses, card and command, each under the name of its model; lines."""
    monkeypatch.setattr(needle, "run_needle", functools.partial(needle.run_needle, depths=2, trials=1))
    given = SMALL | {"steps": 2, "learning_rate": 1e-2, "progress": True}
    record = extend(
        str(tiny_folder), out=tmp_path, needle=(700,), model_name="owner/tiny", command="extend TINY", **given
    )
    summary = json.loads((tmp_path / "needle" / "summary.json").read_text())
    assert summary["model"] == "owner/tiny"
    assert list(summary["variants"]) == list(record["needle"]) == NAMES
    assert [entry["claimed"] for entry in summary["variants"].values()] == [64, 128, 128]
    assert record["needle"]["trained"] == {"700": [0, 2]}
    found = read(tmp_path)
    wanted = ["damage1", "losses1", "card1", "maps2", "curves2", "pairs2", "plans2", "again"]
    assert [name for name in found.sections if name in wanted] == wanted
    text = (tmp_path / "report.html").read_text()
    assert all(
        name in text for name in (*NAMES, "extend TINY", "KL divergence from base", "owner/tiny for 128 tokens")
    )
    assert str(tiny_folder) not in text
    with pytest.raises(ValueError, match="this run asked at 700 before"):
        extend(str(tiny_folder), out=tmp_path, needle=(700, 800), **given, model_name="owner/tiny")
    assert [part.kind for part in runs.read(tmp_path).parts] == ["extension", "needle"]
    told = capsys.readouterr().err
    for name in NAMES:
        assert f"{name}: perplexity {record['perplexity'][name][0]['perplexity']:.4g} to 16" in told
        assert f"{name:<12}      700 tokens" in told


def test_divergence_is_that_of_full_forwards(tmp_path, tiny_folder, byte_tokenizer):
    """KL(base || trained) within the old window, of every token there, and none beyond it."""
    found = extend(str(tiny_folder), out=tmp_path, **SMALL | {"learning_rate": 3e-2})["perplexity"]
    ids = torch.tensor([held_out_ids(open_corpus("prose"), byte_tokenizer, 128)])
    with torch.no_grad():
        p, q = (
            AutoModelForCausalLM.from_pretrained(folder)(ids).logits[0].double().log_softmax(-1)
            for folder in (tiny_folder, tmp_path)
        )
    kl = (p.exp() * (p - q)).sum(-1)
    for row, base in zip(found["trained"], found["base"]):
        inside = row["stop"] <= 64
        places = torch.arange(max(row["start"], 1), row["stop"])
        assert row["compared"] == (len(places) if inside else 0)
        assert row["kl"] == (pytest.approx(float(kl[places - 1].mean()), rel=1e-3) if inside else None)
        assert row["ratio"] == pytest.approx(row["perplexity"] / base["perplexity"])
    assert found["trained"][0]["kl"] > 1e-3 > found["scaled-untrained"][0]["kl"] >= 0


def test_too_little_held_out_text_is_said_before_training_and_in_the_card(tmp_path, tiny_folder, caplog):
    data = tmp_path / "short.txt"
    data.write_text("a short text of which a tenth is held out, " * 20)
    given = SMALL | {"data": data, "steps": 1, "model_name": "owner/tiny"}
    record = extend(str(tiny_folder), out=tmp_path / "run", **given)
    said = "holds out 87 tokens, fewer than the window of 128"
    assert sum(said in one.getMessage() for one in caplog.records) == 1
    card = (tmp_path / "run" / "README.md").read_text()
    assert "Only 87 tokens of the data are held out, fewer than the window of 128" in card
    assert 'base_model: "owner/tiny"' in card
    assert [row["tokens"] for row in record["perplexity"]["trained"]] == [15, 16, 32, 23]
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"text": "some text to train on"}\n' * 9 + '{"text": ""}\n')
    with pytest.raises(ValueError, match="holds out no text to measure on"):
        extend(str(tiny_folder), out=tmp_path / "none", **given | {"data": lines})
    extend(str(tiny_folder), out=tmp_path / "unmeasured", measure=False, **given | {"data": lines})


def test_an_adapter_carries_its_rope_and_refuses_an_unscaled_base(tmp_path, tiny_folder):
    extend(str(tiny_folder), out=tmp_path, tune="lora-plus", merge=False, **QUICK)
    assert not (tmp_path / "model.safetensors").exists()
    with pytest.raises(ValueError, match=r"trained under rope yarn:2 over 64.*patch it first"):
        load_adapter(make_tiny(), tmp_path)
    with pytest.raises(ValueError, match="other frequencies"):
        load_adapter(lc.patch(make_tiny(), rope="yarn:4"), tmp_path)
    ids = torch.arange(3, 103)[None]
    with torch.no_grad():
        by_hand = load_adapter(lc.patch(make_tiny(), rope="yarn:2"), tmp_path).eval()(ids).logits
        loaded = lc.from_pretrained(str(tmp_path)).eval()
        torch.testing.assert_close(loaded(ids).logits, by_hand, atol=1e-5, rtol=1e-4)
    assert lc.describe(loaded).rope == "yarn:2"
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace('"version": 1', '"version": 7'))
    with pytest.raises(ValueError, match="cannot read"):
        lc.from_pretrained(str(tmp_path))


def test_training_under_a_pattern_with_skips_and_a_loaded_model(tmp_path, tiny, byte_tokenizer):
    record = extend(
        tiny, byte_tokenizer, out=tmp_path, attention="block:32,1", pose=True, rope="linear", **QUICK | {"to": 256}
    )
    assert record["stages"][0]["length"] == 64  # short sequences for a window of 256
    assert record["settings"]["attention"] == "block:32,1"
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.max_position_embeddings == 256
    assert not lc.is_patched(tiny)
    assert "forward" not in vars(tiny)
    assert tiny.config._attn_implementation != "longctx"


@pytest.mark.parametrize(
    ("family", "given"),
    [
        ("gemma3", {"tune": "lora-plus", "stages": "96:1,128:2", "to": None}),
        ("phi3", {"tune": "lora", "pose": True}),
        ("gpt_neox", {"tune": "full", "attention": "block:32,1"}),
    ],
)
def test_other_families_are_extended_and_load_plainly(tmp_path, byte_tokenizer, family, given):
    """Nested RoPE, fused projections, and one that turns only part of a head."""
    model = build(family, vocab_size=len(byte_tokenizer))
    record = extend(model, byte_tokenizer, out=tmp_path, **SMALL | {"learning_rate": 1e-3} | given)
    assert len(losses(record)) == 3
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert loaded.config.max_position_embeddings == 128
    if family == "gemma3":
        kinds = {layer: one["rope_type"] for layer, one in loaded.config.rope_parameters.items()}
        assert kinds == {"full_attention": "yarn", "sliding_attention": "default"}
    ids = torch.arange(3, 103)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model.eval()(ids).logits, atol=1e-5, rtol=1e-4)
        assert (loaded(ids).logits - build(family, vocab_size=len(byte_tokenizer))(ids).logits).abs().max() > 1e-4


def test_theta_in_stages_keeps_its_own_window(tmp_path, tiny_folder):
    """EasyContext raises theta and not a factor: the window written is the stage's, not what NTK would make of it."""
    stages = tuple(
        dataclasses.replace(one, steps=1, window=window, length=window, batch=2)
        for one, window in zip(RECIPES["easycontext"].stages, (96, 160))
    )
    recipe = dataclasses.replace(RECIPES["easycontext"], stages=stages)
    extend(str(tiny_folder), out=tmp_path, recipe=recipe, data="prose", device="cpu", progress=False, measure=False)
    config = AutoModelForCausalLM.from_pretrained(tmp_path).config
    assert config.max_position_embeddings == 160
    assert config.rope_parameters["rope_theta"] == pytest.approx(5e6)
    assert config.rope_parameters["rope_type"] == "default"


RESUMED = {
    "data": "prose", "stages": "96:3,128:12", "batch": 2, "device": "cpu", "measure": False, "pose": True,
    "length": 48, "save_every": 2, "learning_rate": 1e-2,
}  # fmt: skip


def killed(folder, given):
    """A run that dies after the weights of the second stage's third step have changed."""

    def die(self, args, state, control, **kwargs):
        if args.output_dir.endswith("1") and state.global_step == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)  # threads do not survive a fork
    Guards.on_optimizer_step = die
    extend(folder, **given)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_a_run_killed_between_two_checkpoints_goes_on_with_the_same_losses(tmp_path, tiny_folder, monkeypatch, capsys):
    """SIGKILL after the weights of step 3 have changed and before they are saved; step 2 has the last checkpoint."""
    given = RESUMED | {"stages": "96:2,128:4", "progress": False}
    whole = extend(str(tiny_folder), out=tmp_path / "whole", **given)
    out = tmp_path / "killed"
    child = multiprocessing.get_context("fork").Process(target=killed, args=(str(tiny_folder), given | {"out": out}))
    child.start()
    child.join(90)
    assert child.exitcode == -signal.SIGKILL
    assert [path.name for path in (out / "stages" / "1").iterdir()] == ["checkpoint-2"]
    read, seconds = corpus.prose.sentences, [0]

    def clock():
        seconds[0] += 1
        return seconds[0]

    def slowly(seed):
        seconds[0] += 10_000  # rows that were trained on are passed over, and that is no part of a step
        return read(seed)

    monkeypatch.setattr(progress, "time", types.SimpleNamespace(perf_counter=clock))
    monkeypatch.setattr(corpus.prose, "sentences", slowly)
    record = extend(str(tiny_folder), out=out, **given | {"progress": True})
    told = capsys.readouterr().err
    assert "training: 2 steps of 6 are left, 192 tokens, by 1 process\n" in told
    assert re.search(r"step 3/4 .* 0:00:01 left", told)
    assert losses(record) == losses(whole)
    assert len(losses(record)) == 6
    with pytest.raises(ValueError, match="this run is finished and asked nothing"):
        extend(str(tiny_folder), out=out, needle=(700,), **given)
    ends = [AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (out, tmp_path / "whole")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_losses(tmp_path, tiny_folder):
    """SIGKILL in the second stage; weights, optimizer, schedule, skips and data order must all come back."""
    whole = extend(str(tiny_folder), out=tmp_path / "whole", progress=False, **RESUMED)
    out = tmp_path / "killed"
    given = [f"--{key.replace('_', '-')}={value}" for key, value in RESUMED.items() if not isinstance(value, bool)]
    command = [sys.executable, "-m", "hf_longctx", "extend", str(tiny_folder), f"--out={out}", *given]
    child = subprocess.Popen([*command, "--pose", "--no-measure"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "stages" / "1" / "checkpoint-4" / "whole").exists():
        assert child.poll() is None, child.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    printed = child.communicate()[1]
    assert "tokens/s" in printed
    assert "left" in printed
    assert not json.loads((out / "extend.json").read_text())["finished"]
    torn = out / "stages" / "1" / "checkpoint-11"
    torn.mkdir(exist_ok=True)
    (torn / "trainer_state.json").write_text('{"global_step')
    record = extend(str(tiny_folder), out=out, progress=False, **RESUMED)
    assert losses(record) == losses(whole)
    assert [row["step"] for row in record["stages"][1]["log"]] == list(range(1, 13))
    ends = [AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (out, tmp_path / "whole")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert not list(out.glob("stages/*/checkpoint-*"))
    assert extend(str(tiny_folder), out=out, progress=False, **RESUMED) == record  # nothing is done twice
    with pytest.raises(ValueError, match="seed=0, and this one has 1"):
        extend(str(tiny_folder), out=out, progress=False, seed=1, **RESUMED)


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_batch(tmp_path, tiny_folder):
    """The launched pair shares each batch; the one process computes it at once."""
    alone = extend(
        str(tiny_folder), out=tmp_path / "one", micro_batch=2, tune="full", learning_rate=1e-3, **QUICK | {"steps": 5}
    )
    out = tmp_path / "two"
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1",
        "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0", "-m",
        "hf_longctx", "extend", str(tiny_folder), f"--out={out}",
        "--data=prose", "--to=128", "--steps=5", "--batch=2", "--full", "--learning-rate=1e-3", "--no-measure",
        "--device=cpu",
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((out / "extend.json").read_text())
    assert record["finished"]
    assert (record["processes"], alone["processes"]) == (2, 1)
    assert done.stderr.count("by 2 processes") == 1
    torch.testing.assert_close(losses(record), losses(alone), atol=1e-5, rtol=0)
    assert losses(record)[-1] < losses(record)[0] - 0.01


# -- what stops a run


def test_a_loss_that_is_no_number_stops_with_the_step(tmp_path, tiny_folder):
    with pytest.raises(ValueError, match=r"step [23]: .*(?:loss is|not finite).*learning rate \(1e\+30\)"):
        extend(str(tiny_folder), out=tmp_path, learning_rate=1e30, tune="full", **QUICK)


def test_a_first_loss_far_above_stops_with_advice(tmp_path, tiny_folder):
    with pytest.raises(ValueError, match=r"step 1: the loss is \d\.\d+ under rope yarn:2.*limit 0\.10.*Check --rope"):
        extend(str(tiny_folder), out=tmp_path, max_first_loss=0.1, **QUICK)


def test_gradients_are_clipped_and_a_run_where_they_are_not_stops(tmp_path, tiny_folder, monkeypatch):
    from hf_longctx.training.trainer import ExtendTrainer

    recipe = dataclasses.replace(RECIPES["default"], clip=1e-3)
    norms = []
    watched = Guards.on_pre_optimizer_step

    def watch(self, args, state, control, model=None, **kwargs):
        norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])))
        return watched(self, args, state, control, model=model, **kwargs)

    monkeypatch.setattr(Guards, "on_pre_optimizer_step", watch)
    record = extend(str(tiny_folder), out=tmp_path / "clipped", recipe=recipe, **QUICK)
    assert norms == pytest.approx([1e-3] * 3, rel=1e-2)
    assert min(row["grad_norm"] for row in record["stages"][0]["log"]) > 1e-2  # what it was before
    monkeypatch.setattr(ExtendTrainer, "_clip_grad_norm", lambda self, model: torch.tensor(1.0))
    with pytest.raises(ValueError, match="clipping did not run"):
        extend(str(tiny_folder), out=tmp_path / "not", recipe=recipe, **QUICK)


def test_frequencies_that_did_not_change_are_refused(tiny):
    from hf_longctx.training.guards import check_changed, rope_state

    before = rope_state(tiny)
    tiny.config.rope_parameters = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}  # what others do
    with pytest.raises(ValueError, match="old frequencies"):
        check_changed(tiny, before, "yarn:4")
    lc.patch(make := make_tiny(), rope="yarn:4")
    check_changed(make, before, "yarn:4")


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_full_disk_is_seen_before_it_is_written_to(tmp_path, tiny_folder, monkeypatch, after):
    """Before anything, before training, and before a checkpoint when it has filled up meanwhile."""
    import shutil

    usage, calls = namedtuple("usage", "total used free"), []

    def full(path):
        calls.append(path)
        return usage(0, 0, 1 if len(calls) > after else 1 << 40)

    monkeypatch.setattr(shutil, "disk_usage", full)
    with pytest.raises(
        ValueError, match=r"GiB free, and (the result|its checkpoints|the checkpoint of step 1).*needs"
    ):
        extend(str(tiny_folder), out=tmp_path, save_every=1, **QUICK)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tune": "qlora"}, "must be one of full, lora, lora-plus"),
        ({"recipe": "yarn-61"}, "did you mean"),
        ({"to": 64}, "extends nothing"),
        ({"batch": 3, "micro_batch": 2}, "multiple of 2"),
        ({"batch": -2}, "batch is -2: it must be a whole number, at least 1"),
        ({"micro_batch": 0}, "micro_batch is 0: it must be"),
        ({"save_every": 0}, "save_every is 0: it must be"),
        ({"max_first_loss": 0.0}, r"max_first_loss is 0\.0: it must be a finite number above 0"),
        ({"learning_rate": 0.0}, r"learning_rate is 0\.0: it must be"),
        ({"data": "no/such/thing"}, "cannot be opened"),
        ({"length": 1}, "at least 3 tokens"),
        ({"attention": "windw:4"}, "windw"),
        ({"stages": "96:1,128:1", "length": 100}, "longer than the window of 96"),
        ({"tune": "full", "merge": False}, "merge=False saves the adapter alone"),
        ({"tune": "full", "rank": 4}, "rank is 4, and tune='full' trains no LoRA"),
        ({"rank": 0}, "rank is 0: it must be"),
        ({"needle": (20,)}, "needle: nothing can be asked at 20 tokens"),
        ({"needle": (0,)}, "lengths holds 0"),
        ({"device": "cuda:7"}, "CUDA devices are usable here"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"dtype": "float16"}, "gradients vanish"),
        ({"report_to": "tensorbored"}, "report_to is 'tensorbored'"),
        ({"recipe": dataclasses.replace(RECIPES["default"], schedule="zigzag")}, "zigzag"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_measured_or_written(
    tmp_path, tiny_folder, monkeypatch, given, words
):
    def reads(*args, **kwargs):
        raise AssertionError("the model was read first")

    monkeypatch.setattr(extension_run, "token_losses", reads)
    monkeypatch.setattr(held_out, "token_losses", reads)
    with pytest.raises(ValueError, match=words):
        extend(str(tiny_folder), out=tmp_path / "run", **SMALL | given)
    assert not (tmp_path / "run").exists()


def test_a_quantised_model_is_refused(tmp_path, tiny_folder):
    """Its weights can be neither trained nor merged into; without this it was found out after training."""
    folder = tmp_path / "quantised"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    quantised = config | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (folder / "config.json").write_text(json.dumps(quantised))
    with pytest.raises(ValueError, match=r"weights are quantised.*load it in bfloat16, or train an adapter"):
        extend(str(folder), out=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()


def test_missing_packages_are_named_before_anything_long(tmp_path, tiny_folder, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "peft" else found(name, *more)
    )
    with pytest.raises(ModuleNotFoundError, match="tune='lora' needs the package peft"):
        extend(str(tiny_folder), out=tmp_path / "run", tune="lora", **SMALL)
    monkeypatch.setattr(integrations, "is_wandb_available", lambda: False)
    with pytest.raises(ModuleNotFoundError, match="pip install wandb"):
        extend(str(tiny_folder), out=tmp_path / "run", tune="full", report_to="wandb", **SMALL)
    assert not (tmp_path / "run").exists()


def test_a_patched_model_and_a_foreign_folder_are_refused(tmp_path, tiny, byte_tokenizer):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no run of extend"):
        extend(tiny, byte_tokenizer, out=tmp_path, **QUICK)
    with pytest.raises(ValueError, match="tokenizer is None"):
        extend(tiny, out=tmp_path / "run", **QUICK)
    lc.patch(tiny, rope="yarn:2")
    with pytest.raises(ValueError, match=r"is patched.*unpatch"):
        extend(tiny, byte_tokenizer, out=tmp_path / "run", **QUICK)


# -- the command


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data=prose", "--to=32q"], "--to must be a length"),
        (["--data=prose", "--to=128", "--lora", "--full"], "--lora and --full are both given"),
        (["--data=prose"], "--to 32k"),
    ],
)
def test_a_mistake_is_one_sentence(run, tiny_folder, tmp_path, arguments, words):
    code, out, err = run("extend", str(tiny_folder), f"--out={tmp_path / 'run'}", *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_recipes_are_listed_with_their_sources(run):
    code, out, _ = run("extend", "--recipes")
    assert code == 0
    assert all(name in out and one.source in out for name, one in RECIPES.items())


def test_the_command_shows_before_and_after(run, tiny_folder, tmp_path):
    code, out, err = run(
        "extend", str(tiny_folder), f"--out={tmp_path / 'run'}", "--data=prose", "--to=128", "--steps=2", "--batch=1",
        "--lora", "--device=cpu",
    )  # fmt: skip
    assert code == 0, err
    assert "perplexity" in out
    assert all(word in out for word in ("base", "scaled,", "KL, this"))  # headings break in a narrow terminal
    assert "under yarn:2" in out
    assert err.count("tokens/s") == 2
    assert "training: 2 steps, 256 tokens, by 1 process; about 0:01:00" in err
    assert "hf-longctx extend" in (tmp_path / "run" / "README.md").read_text()
