"""Which layers to convert: the damage of each against a plain patched model, the budget, and the command."""

from __future__ import annotations

import copy
import json

import pytest
import torch

import hf_longctx as lc
from families import build, tokens
from fingerprint import fingerprint
from hf_longctx.mamba import Mamba2
from hf_longctx.training import choose_layers
from hf_longctx.training.layer_choice import _damages
from hf_longctx.training.layer_texts import LayerText
from hybrids import HYBRIDS
from tiny_model import make_tiny

QUICK = {"data": "prose", "length": 384, "rows": 1, "tokens": 4096}


@pytest.mark.parametrize("family", HYBRIDS)
def test_the_damage_is_that_of_a_model_with_the_layer_converted(family):
    """Reading on from the layer gives what reading the patched model from the beginning gives."""
    rows = [tokens(1, 30, seed=n)[0].tolist() for n in (1, 2)]
    places, values = [3, 4, 17], [25, 28]
    plan, stock = Mamba2("*", memory=64), build(family)
    before = fingerprint(stock)
    with torch.no_grad():
        found = _damages(stock, plan, (0, 1, 2), [LayerText(row, places, values) for row in rows])
    assert fingerprint(stock) == before
    for layer in range(3):
        kls, rises = [], []
        with torch.no_grad(), lc.patched(build(family), mamba=Mamba2(str(layer), memory=64)) as model:
            for row in rows:
                ids = torch.tensor([row])
                wanted, said = (m(ids).logits[0].double().log_softmax(-1) for m in (stock, model))
                kls.append((wanted.exp() * (wanted - said)).sum(-1)[places])
                targets = ids[0, [place + 1 for place in values]]
                rises.append((wanted - said)[values].gather(1, targets[:, None]))
        assert found[layer][0] == pytest.approx(float(torch.cat(kls).mean()), rel=1e-3, abs=1e-6)
        assert found[layer][1] == pytest.approx(float(torch.cat(rises).mean()), rel=1e-3, abs=1e-5)


@pytest.fixture(scope="module")
def indifferent(byte_tokenizer):
    """A model of 6 layers, of which 2 and 5 add nothing to the stream."""
    model = make_tiny(num_hidden_layers=6, initializer_range=0.2)
    with torch.no_grad():
        for index in (2, 5):
            model.model.layers[index].self_attn.o_proj.weight.zero_()
    return model


def test_the_cheapest_layers_go_first_until_the_cache_fits(indifferent, byte_tokenizer):
    choice = choose_layers(indifferent, byte_tokenizer, budget_kv=0.7, **QUICK)
    assert choice.chosen == (2, 5)
    assert {one.index for one in choice.ranking[:2]} == {2, 5}
    assert [one.damage for one in choice.ranking[:2]] == [0, 0]
    assert all(one.kl > 0 for one in choice.ranking[2:])
    assert str(choice.mamba) == "2,5"
    model = make_tiny(num_hidden_layers=6)
    stock = lc.describe(model).cache_bytes(4096)
    assert choice.kept == pytest.approx(lc.describe(lc.patch(model, mamba=choice.mamba)).cache_bytes(4096) / stock)
    more = choose_layers(indifferent, byte_tokenizer, budget_kv=0.5, mamba="1:,memory=64", **QUICK)
    assert len(more.chosen) == 4  # four states are more than nothing
    assert 0 not in more.chosen
    assert more.mamba.memory == 64
    fewer = more.within(0.9)
    assert (fewer.chosen, fewer.ranking, fewer.mamba.memory) == (tuple(sorted(fewer.chosen)), more.ranking, 64)
    assert set(fewer.chosen) < set(more.chosen)
    assert more.kept < fewer.kept <= 0.9
    assert fewer.within(0.5) == more
    with pytest.raises(ValueError, match="above 0 and below 1"):
        more.within(1)
    assert "yes" in str(more)
    assert json.loads(json.dumps(more.to_dict()))["chosen"] == list(more.chosen)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"budget_kv": 1.5}, "above 0 and below 1"),
        ({"budget_kv": 0.1}, "cannot bring the cache below 0.1"),
        ({"budget_kv": 0.5, "tokens": 4}, "states take room too"),
        ({"budget_kv": 0.5, "tokens": 0}, "tokens is 0"),
        ({"budget_kv": 0.5, "length": 64}, "facts and questions"),
        ({"budget_kv": 0.5, "mamba": "9"}, "matches no layer"),
        ({"budget_kv": 0.5, "data": "no/such"}, "cannot be opened"),
    ],
)
def test_what_cannot_be_chosen_is_refused(indifferent, byte_tokenizer, given, words):
    with pytest.raises(ValueError, match=words):
        choose_layers(indifferent, byte_tokenizer, **QUICK | given)


def test_text_that_ends_is_refused(indifferent, byte_tokenizer, tmp_path):
    (tmp_path / "short.txt").write_text("It ends. " * 10)
    with pytest.raises(ValueError, match="tokens before the last row"):
        choose_layers(indifferent, byte_tokenizer, budget_kv=0.7, **QUICK | {"data": tmp_path})


@pytest.mark.parametrize("how", [("--mamba=1",), ("--budget-kv=0.7", "--data=prose", "--rows=1", "--length=384")])
@pytest.mark.parametrize(("asked", "saved"), [((), torch.bfloat16), (("--dtype=float32",), torch.float32)])
def test_a_converted_model_keeps_its_dtype(indifferent, byte_tokenizer, run, tmp_path, how, asked, saved):
    copy.deepcopy(indifferent).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    byte_tokenizer.save_pretrained(tmp_path / "model")
    code, _, err = run("convert", str(tmp_path / "model"), *how, *asked, f"--out={tmp_path / 'out'}")
    assert code == 0, err
    assert lc.from_pretrained(tmp_path / "out").get_input_embeddings().weight.dtype == saved


def test_convert_under_a_budget(indifferent, byte_tokenizer, run, tmp_path):
    folder, out = tmp_path / "model", tmp_path / "hybrid"
    indifferent.config.max_position_embeddings = 4096
    indifferent.save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    options = ("--budget-kv=0.7", "--data=prose", "--rows=1", "--length=384")
    code, shown, err = run("convert", str(folder), *options, f"--out={out}")
    assert code == 0, err
    for word in ("damage", "mamba=2,5", "2 Mamba-2 layers", "layers.png", f"distill {folder} --mamba 2,5"):
        assert word in shown
    assert json.loads((out / "layers.json").read_text())["chosen"] == [2, 5]
    assert (out / "layers.png").stat().st_size > 1000
    assert lc.from_pretrained(out).config.longctx["mamba"] == "2,5"
    code, shown, _ = run("convert", str(folder), *options, f"--out={tmp_path / 'json'}", "--json")
    assert json.loads(shown)["choice"]["mamba"] == "2,5"
    code, shown, err = run("convert", str(folder), *options, "--rope=yarn:2")  # the ranking alone
    assert code == 0, err
    for word in ("damage", "mamba=2,5", "2 Mamba-2 layers", "--mamba 2,5 --rope 'yarn:2' --data", "nothing is saved"):
        assert word in shown
    assert {path.name for path in tmp_path.iterdir()} == {"model", "hybrid", "json"}
    code, _, err = run("convert", str(folder), "--mamba=1")
    assert (code, "--out is missing" in err) == (2, True)
    for arguments, words in (
        ((), "neither --mamba nor"),
        (("--mamba=1", "--data=prose"), "give --budget-kv too"),
        (("--mamba=1", "--tokens=1k"), "give --budget-kv too"),
        (("--mamba=1", "--rows=4"), "--rows 4 is for choosing layers"),
        (("--mamba=1,init=random", "--seed=7"), "1::4,init=random,seed=7"),
        ((*options, "--tokens=4"), "states take room too"),
    ):
        code, _, err = run("convert", str(folder), *arguments, f"--out={tmp_path / 'x'}")
        assert code == 2
        assert words in err
