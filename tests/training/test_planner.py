"""The planner's formulas against what PyTorch really saves and counts, its levers, and its command."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

import hf_longctx as lc
from families import FAMILIES, build
from hf_longctx.measure.public_models import config_of
from hf_longctx.rope.text import read_length
from hf_longctx.training import extend, plan, planner
from hf_longctx.training.activations import layer_tokens
from hf_longctx.training.memory_model import held, kept_bytes, logits_bytes, moments
from hf_longctx.training.tiled_loss import tile_loss, tile_rows, untile_loss
from hf_longctx.training.trained_sizes import Setting, Sizes, sizes
from hf_longctx.training.tuning import make_trainable, to_float32
from pairs import pairwise

TUNES = ("lora", "lora-plus", "full")
#: Tokens enough for the tiled engine, which attention on a CPU runs on from 256 keys.
TOKENS, RANK = 300, 4
#: Families whose layers are exactly what the formula describes; the others differ by their own norms and fusions.
EXACT = ("llama", "mistral", "qwen2")


@pytest.fixture(autouse=True)
def counted_once(monkeypatch):
    """A model is counted by building it, which takes seconds: here once for each configuration."""

    def remembered(config, tune, rank):
        key = config.to_json_string(use_diff=False), tune, rank
        if key not in COUNTED:
            COUNTED[key] = sizes(config, tune, rank)
        return COUNTED[key]

    monkeypatch.setattr(planner, "sizes", remembered)


COUNTED: dict[tuple[str, str, int], Sizes] = {}


def setting(tune: str, **more) -> Setting:
    given = {"length": TOKENS, "window": TOKENS, "itemsize": 4, "autocast": False, "cuda": False, "rank": RANK}
    return Setting(tune=tune, **given | more)


def trainable(model, tune: str, autocast: bool = False):
    if autocast:
        model = model.to(torch.bfloat16)
    model.config.use_cache = False
    lc.patch(model, attention="full")
    adapted = make_trainable(model, tune, rank=RANK, alpha=8, seed=0)
    if autocast:
        to_float32(adapted)
    return adapted.train()


def saved_bytes(model, adapted, autocast: bool) -> tuple[int, int]:
    """Bytes that the second layer and the whole model save for the backward pass; weights are not counted."""
    weights = {p.untyped_storage().data_ptr() for p in adapted.parameters()}
    stores: dict[int, int] = {}
    marks: list[set[int]] = []
    alive = []

    def pack(tensor):
        store = tensor.untyped_storage()
        if store.data_ptr() not in weights and TOKENS in tensor.shape:  # no copies of weights, no small constants
            stores[store.data_ptr()] = store.nbytes()
            alive.append(tensor)
        return tensor

    layer = model.get_decoder().layers[1]
    layer.register_forward_pre_hook(lambda *_: marks.append(set(stores)))
    layer.register_forward_hook(lambda *_: marks.append(set(stores)))
    ids = torch.arange(TOKENS)[None] % 50 + 3
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
    ):
        adapted(input_ids=ids, labels=ids)
    return sum(stores[one] for one in marks[1] - marks[0]), sum(stores.values())


@pytest.mark.parametrize(
    ("family", "tune", "autocast"),
    # The formula is for one MLP: of experts it counts each as if every token passed it.
    pairwise([name for name in FAMILIES if name not in ("gpt_neox", "gpt_oss")], TUNES, (False, True)),
)
def test_a_layer_saves_what_the_formula_says(family, tune, autocast):
    model = build(family)
    config = model.config
    how = setting(tune, autocast=autocast, itemsize=2 if autocast else 4)
    one = layer_tokens(sizes(config, tune, RANK), how)
    # A float32 stream is saved itself, and is the layer's input, which checkpointing counts.
    expected = (one.saved + (one.kept if how.stream == 4 else 0)) * TOKENS
    found, _ = saved_bytes(model, trainable(model, tune, autocast), autocast)
    if family in EXACT:
        assert found == expected
    else:
        assert found == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tune", TUNES)
def test_parameters_are_those_of_the_real_model(family, tune):
    model = build(family)
    counted = sizes(model.config, tune, RANK)
    adapted = trainable(model, tune)
    moving = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert counted.trained == moving
    assert counted.frozen == sum(p.numel() for p in adapted.parameters()) - moving
    assert counted.largest == max(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_checkpointing_keeps_the_inputs_of_the_layers():
    """Between forward and backward, everything saved is the layers' inputs and what the end of the model has."""
    model = build("llama")
    adapted = trainable(model, "full")
    counted, how = sizes(model.config, "full", RANK), setting("full")
    _, everything = saved_bytes(model, adapted, False)
    adapted.gradient_checkpointing_enable({"use_reentrant": False})
    _, inputs = saved_bytes(model, adapted, False)
    kept, all_kept = (kept_bytes(counted, setting("full", checkpointing=c)) for c in (True, False))
    assert kept == counted.shape.layers * TOKENS * 32 * 4
    # The difference is exactly what checkpointing saves; the rest is the same on both sides.
    assert everything - inputs == pytest.approx(all_kept - kept, rel=0.05)
    assert how.tokens == TOKENS


def test_tiles_are_those_of_the_loss():
    model = build("llama")
    tile_loss(model)
    untile_loss(model)
    words = 1 << 20
    counted = sizes(
        LlamaConfig(vocab_size=words, hidden_size=32, intermediate_size=32, num_hidden_layers=1), "full", 4
    )
    assert tile_rows(words) < TOKENS
    assert logits_bytes(counted, setting("full")) == 12 * tile_rows(words) * words
    assert logits_bytes(counted, setting("full", tile=False)) == 12 * TOKENS * words


def test_moments_hold_what_must_be_there():
    config = LlamaConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=4)
    for tune in TUNES:
        counted = sizes(config, tune, RANK)
        how = setting(tune)
        always = held(counted, how)
        assert always.optimizer == 2 * always.gradients == 8 * counted.trained
        found = moments(counted, how)
        training = {name: size for name, size in found.items() if name != "reading"}
        assert min(training.values()) >= always.weights + always.optimizer
        assert found["optimizer"] > always.weights + always.optimizer + always.gradients
        assert found["loss"] >= always.weights + always.optimizer + logits_bytes(counted, how)
        # Sharing takes its part off each device, and gathering adds some.
        shared = held(counted, setting(tune, devices=4, shard=True))
        assert shared.weights == -(-always.weights // 4)
        assert shared.shared > 0
        assert held(counted, setting(tune, devices=4)).shared == always.gradients


def big(**more):
    return plan("llama-3.1-8b", **{"to": 131072, "tune": "full"} | more)


def test_what_fits_needs_no_lever():
    planned = plan("llama-3.1-8b", to=32768, tune="lora")
    assert planned.fits
    assert planned.levers == ()
    assert planned.total == max(planned.moments.values()) == planned.moments[planned.peak] <= planned.usable
    assert "to spare" in planned.advice
    assert planned.weights == 2 * 8_030_261_248 + 4 * planned.trained  # bfloat16, LoRA in float32
    assert planned.cache == 2 * 2 * 32 * 1024 * 32768


def test_levers_are_as_few_as_are_enough_and_in_order():
    alone = big(to=32768)
    assert [lever.name for lever in alone.levers] == ["LoRA-plus"]
    two = big()
    assert [lever.name for lever in two.levers] == ["LoRA-plus", "PoSE"]
    assert [lever.fits for lever in two.levers] == [False, True]
    assert two.total > two.levers[0].total_bytes > two.levers[1].total_bytes
    assert "--pose --length 8192" in two.advice
    # What a lever promises is what a plan with it says.
    assert big(tune="lora-plus").total == two.levers[0].total_bytes
    assert big(tune="lora-plus", pose=True).total == two.levers[1].total_bytes


@pytest.mark.parametrize(
    ("given", "first"),
    [
        ({"to": 65536, "tune": "lora", "checkpointing": False}, "checkpointing"),
        ({"to": 65536, "tune": "lora", "tile": False}, "tiled loss"),
        ({"to": 8192, "tune": "lora", "micro_batch": 64}, "micro-batch of 1"),
        ({"to": 8192, "devices": 8}, "FSDP or ZeRO-3"),
    ],
)
def test_the_first_lever(given, first):
    planned = big(**given)
    assert not planned.fits
    assert [lever.name for lever in planned.levers] == [first]
    assert planned.levers[-1].fits


def test_when_no_lever_is_enough_the_sequence_must_be_split():
    planned = big(device_memory="4GB")
    assert not planned.levers[-1].fits
    assert "sequence parallelism" in planned.advice


def test_a_plan_is_refused_for_what_it_cannot_know():
    for given, words in (
        ({"tune": "some"}, "tune is 'some'"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"device_memory": "h10"}, "did you mean 'h100'"),
        ({"devices": 0}, "devices is 0"),
        ({"length": 1 << 21}, "longer than the window"),
        ({"shard": True}, "several devices"),
    ):
        with pytest.raises(ValueError, match=words):
            big(**given)
    with pytest.raises(ValueError, match="no RoPE"):
        plan("jamba-v0.1", to=1 << 20, tune="full")
    with pytest.raises(ValueError, match="without attention"):
        sizes(config_of("jamba-v0.1"), "full", RANK)


def test_the_command(run):
    code, out, _ = run("plan", "qwen2.5-7b", "--to", "128k", "--lora", "--device-memory", "80GB", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["setting"]["tune"] == "lora"
    assert document["setting"]["window"] == 131072
    assert document == json.loads(
        json.dumps(plan("qwen2.5-7b", to=131072, tune="lora", device_memory="80GB").to_dict())
    )
    code, out, _ = run("plan", "smollm2-135m", "--to", "16k", "--full", "--no-checkpointing")
    assert code == 0
    assert all(word in out for word in ("weights", "optimizer", "logits", "predicted peak", "fits", "NVIDIA H100"))
    for wrong, words in ((("--to", "many"), "--to"), (("--to", "1k", "--lora", "--full"), "choose one")):
        code, _, err = run("plan", "smollm2-135m", *wrong)
        assert code == 2
        assert words in err


def test_the_table_in_the_docs_is_the_planners():
    text = (Path(__file__).parents[2] / "docs" / "extend.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+) \| (\d+K) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", text, flags=re.M)
    assert len(rows) == 4
    for model, length, *cells in rows:
        for tune, cell in zip(TUNES, cells):
            assert f"{plan(model.lower(), to=read_length(length.lower()), tune=tune).total / 1e9:.1f}" == cell


def test_predictions_are_within_a_sixth_of_what_was_measured():
    """The formulas of today beside the peaks of the bundled model's steps that are committed, 15% at most."""
    path = Path(__file__).parents[2] / "evals" / "results" / "planner.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["results"]
    assert len({row["length"] for row in rows}) >= 3
    for row in rows:
        planned = plan("smollm2-135m", to=row["length"], tune=row["tune"], dtype="float32", device="cpu")
        step = max(size for name, size in planned.moments.items() if name != "reading")
        assert step == pytest.approx(row["measured_bytes"], rel=0.15)


@pytest.mark.parametrize("tune", TUNES)
def test_training_in_bfloat16(tmp_path, tiny_folder, tune):
    """Float32 embeddings make queries and keys float32 under autocast, while values stay in 16 bits."""
    record = extend(
        str(tiny_folder), out=tmp_path, tune=tune, data="prose", to=128, steps=2, batch=1, progress=False,
        device="cpu", dtype="bfloat16", measure=False,
    )  # fmt: skip
    logged = [row["loss"] for row in record["stages"][0]["log"]]
    assert len(logged) == 2
    assert logged[0] == pytest.approx(record["reference_loss"], rel=0.2)
