"""Saved and loaded again: with this package, with transformers and the registered name, and by another version."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

import hf_longctx as lc
from families import FAMILIES, build, padding, tokens

PLAN = {"attention": "1=window:6+global:2;*=full", "rope": "yarn:2"}


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip(family, tmp_path):
    ids, mask = tokens(2, 30), padding("left", 2, 30)
    model = lc.patch(build(family), **PLAN)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
        again = lc.from_pretrained(str(tmp_path))
        assert type(again) is type(model)
        assert torch.equal(again(ids, attention_mask=mask).logits, expected)
        assert str(lc.describe(again)) == str(lc.describe(model))
        assert again.config.longctx == model.config.longctx
        named = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="longctx")
        torch.testing.assert_close(named(ids, attention_mask=mask).logits, expected, atol=1e-5, rtol=1e-5)
        stock = build(family)
        for loaded in (again, named):
            assert torch.equal(
                lc.unpatch(loaded)(ids, attention_mask=mask).logits, stock(ids, attention_mask=mask).logits
            )
            assert not hasattr(loaded.config, "longctx")
        again.save_pretrained(tmp_path / "stock")
    assert "longctx" not in json.loads((tmp_path / "stock" / "config.json").read_text())


def test_twice_saved_is_scaled_once(tmp_path):
    lc.patch(build("llama"), **PLAN).save_pretrained(tmp_path / "a")
    lc.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    first, second = (json.loads((tmp_path / x / "config.json").read_text()) for x in "ab")
    assert first == second
    with pytest.raises(ValueError, match="already patched"):
        lc.patch(lc.from_pretrained(tmp_path / "b"), rope="yarn:2")


def test_an_ordinary_checkpoint_loads_as_it_is(tmp_path):
    model, ids = build("llama"), tokens(1, 20)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(lc.from_pretrained(tmp_path, dtype="float32")(ids).logits, model(ids).logits)


@pytest.mark.parametrize("load", ["ours", "plain"])
def test_another_plan_version_is_refused(tmp_path, load):
    lc.patch(build("llama"), **PLAN).save_pretrained(tmp_path)
    edit(tmp_path, lambda config: config["longctx"].update(version=99))
    with pytest.raises(ValueError, match=r"version 99.*reads version 1.*install"):
        if load == "ours":
            lc.from_pretrained(tmp_path)
        else:
            AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="longctx")(tokens(1, 4))


@pytest.mark.parametrize(
    "damage",
    [{"original": None}, {"backend": 3}, {"attention": ["full"]}, {"own_windows": None}],
    ids=lambda damage: next(iter(damage)),
)
def test_a_damaged_plan_is_refused(tmp_path, damage):
    lc.patch(build("llama"), **PLAN).save_pretrained(tmp_path)
    edit(tmp_path, lambda config: config["longctx"].update(damage))
    with pytest.raises(ValueError, match=rf"config.longctx is damaged: its field '{next(iter(damage))}' is"):
        lc.from_pretrained(tmp_path)
    edit(tmp_path, lambda config: config["longctx"].pop(next(iter(damage))))
    with pytest.raises(ValueError, match=rf"its field '{next(iter(damage))}' is missing"):
        lc.from_pretrained(tmp_path)


@pytest.mark.parametrize("plan", [{"attention": "window:6"}, {"rope": "dynamic:1"}], ids=["attention", "dynamic"])
def test_a_plan_that_plain_loading_leaves_idle_is_said_to_be(tmp_path, plan):
    lc.patch(build("llama"), **plan).save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    description = lc.describe(plain)
    assert not description.patched
    assert "not in force here: load the checkpoint with hf_longctx.from_pretrained" in str(description)
    assert {layer.pattern for layer in description.layers} == {"full"}
    assert lc.describe(lc.from_pretrained(tmp_path)).note is None


def test_loading_info_comes_with_the_model(tmp_path):
    lc.patch(build("llama"), **PLAN).save_pretrained(tmp_path)
    model, info = lc.from_pretrained(tmp_path, output_loading_info=True)
    assert model.config.longctx["rope"] == "yarn:2"
    assert not info["missing_keys"]


def test_a_folder_without_its_tokenizer_is_named(tmp_path):
    """transformers asks for packages that have nothing to do with it, or makes up a tokenizer without words."""
    build("qwen2").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="was saved without its tokenizer: save that there too"):
        lc.load_model(str(tmp_path))


def test_an_edited_config_is_refused(tmp_path):
    lc.patch(build("llama"), **PLAN).save_pretrained(tmp_path)
    edit(tmp_path, lambda config: config["rope_parameters"].update(factor=3.0))
    with pytest.raises(ValueError, match=r"rope_parameters.*edited after saving"):
        lc.from_pretrained(tmp_path)


def test_a_replaced_window_without_this_package_seeing_to_the_cache_is_refused(tmp_path):
    model = lc.patch(build("mistral"), attention="window:20+global:2", own_windows="replace")
    model.save_pretrained(tmp_path)
    named = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="longctx")
    with pytest.raises(ValueError, match="from_pretrained"):
        named.generate(tokens(1, 30), max_new_tokens=4)


def edit(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
