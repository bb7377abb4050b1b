"""Adapters that carry their RoPE: from a folder and from the hub, what they call their base, and what is refused."""

from __future__ import annotations

import json
import shutil

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError
from transformers import AutoModelForCausalLM

import hf_longctx as lc
from hf_longctx.hf.adapters import carried_rope, save_adapter
from hf_longctx.hf.loading import DEMO_ID, load_config
from hf_longctx.training import load_adapter
from hf_longctx.training.tuning import make_trainable
from tiny_model import make_tiny

IDS = torch.arange(3, 103)[None]


def make_adapter(folder, loaded_from, **given):
    """An adapter that changes something, over `yarn:2`; the logits under it."""
    pytest.importorskip("peft")
    model = lc.patch(make_tiny(), rope="yarn:2")
    model.config._name_or_path = model.name_or_path = str(loaded_from)
    adapted = make_trainable(model, "lora", rank=2, alpha=4, seed=0).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
        save_adapter(adapted, folder, window=128, **given)
        return adapted(IDS).logits


def base_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]


@pytest.fixture
def published(tmp_path, tiny_folder):
    """Logits of an adapter, and the cache of a hub that has it as `user/adapter`."""
    made, cache, commit = tmp_path / "made", tmp_path / "cache", "a" * 40
    logits = make_adapter(made, tiny_folder)
    store = cache / "models--user--adapter"
    (store / "refs").mkdir(parents=True)
    (store / "refs" / "main").write_text(commit)
    shutil.copytree(made, store / "snapshots" / commit)
    return logits, cache


def test_an_adapter_of_the_hub_is_loaded_under_its_rope(published):
    logits, cache = published
    with pytest.raises(ValueError, match=r"user/adapter was trained under rope yarn:2 over 64.*patch it first"):
        load_adapter(make_tiny(), "user/adapter", cache_dir=cache)
    with torch.no_grad():
        adapted = load_adapter(lc.patch(make_tiny(), rope="yarn:2"), "user/adapter", cache_dir=cache).eval()
        torch.testing.assert_close(adapted(IDS).logits, logits, atol=1e-5, rtol=1e-4)
        whole = lc.from_pretrained("user/adapter", cache_dir=cache, revision="main").eval()
        torch.testing.assert_close(whole(IDS).logits, logits, atol=1e-5, rtol=1e-4)
    assert lc.describe(whole).rope == "yarn:2"
    assert whole.config.max_position_embeddings == 128


def test_an_adapter_of_the_hub_without_rope_is_told_from_one_that_is_not_there(published, monkeypatch):
    _, cache = published
    with pytest.raises(ValueError, match=r"'user/other' cannot be loaded: the hub cannot be reached"):
        load_adapter(make_tiny(), "user/other", cache_dir=cache)
    [config] = cache.glob("models--user--adapter/snapshots/*/adapter_config.json")
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "longctx"}))
    with pytest.raises(ValueError, match=r"carries no RoPE.*on a model that has the RoPE"):
        load_adapter(make_tiny(), "user/adapter", cache_dir=cache)
    assert carried_rope("user/adapter", cache_dir=cache) is None

    answer = type("Answer", (), {"headers": {}, "request": None, "status_code": 404})()

    def fails(error):
        def download(repo, file, **hub):
            assert (repo, file, hub) == ("user/other", "adapter_config.json", {"revision": "v2"})
            raise error("no such thing", response=answer)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)

    for error, words in (
        (RepositoryNotFoundError, "no such repository or revision, or not to you"),
        (RemoteEntryNotFoundError, "has no adapter_config.json, so it is no adapter"),
    ):
        fails(error)
        with pytest.raises(ValueError, match=f"'user/other' cannot be loaded: .*{words}"):
            load_adapter(make_tiny(), "user/other", revision="v2")
        assert carried_rope("user/other", revision="v2") is None


def test_an_ordinary_adapter_is_loaded_with_its_base(tmp_path, tiny_folder):
    """As transformers does it, and told apart from one whose RoPE is known where a whole model is wanted."""
    make_adapter(tmp_path / "made", tiny_folder)
    config = tmp_path / "made" / "adapter_config.json"
    with pytest.raises(ValueError, match=r"is an adapter alone: hf_longctx\.from_pretrained\('.*made'\) gives"):
        load_config(str(tmp_path / "made"))
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "longctx"}))
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "made").eval()
    model, info = lc.from_pretrained(str(tmp_path / "made"), output_loading_info=True)
    assert not info["missing_keys"]
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(IDS).logits, expected(IDS).logits)
    with pytest.raises(ValueError, match=r"AutoPeftModelForCausalLM\.from_pretrained\('.*made'\)\.merge_and_unload"):
        load_config(str(tmp_path / "made"))


def test_what_is_no_adapter_is_said(tmp_path, tiny_folder):
    with pytest.raises(ValueError, match="has no adapter_config.json, so it is no adapter"):
        load_adapter(make_tiny(), tiny_folder)
    with pytest.raises(ValueError, match="no folder here, and no hub id"):
        load_adapter(make_tiny(), tmp_path / "nothing")


def test_a_base_is_called_by_its_hub_id_where_one_is_known(tmp_path, tiny_folder):
    make_adapter(tmp_path / "local", tiny_folder)
    assert base_of(tmp_path / "local") == str(tiny_folder)
    assert not (tmp_path / "local" / "README.md").exists()  # PEFT's names the folder too
    make_adapter(tmp_path / "named", tiny_folder, base="owner/tiny")
    assert base_of(tmp_path / "named") == "owner/tiny"


def test_the_bundled_model_is_called_by_its_hub_id_and_still_loaded_from_here(tmp_path, tiny_folder, monkeypatch):
    from hf_longctx.hf import loading

    monkeypatch.setenv("HF_LONGCTX_CACHE", str(tmp_path / "cache"))
    kept = tmp_path / "cache" / loading._DEMO_FOLDER
    shutil.copytree(tiny_folder, kept)
    logits = make_adapter(tmp_path / "adapter", kept)
    assert base_of(tmp_path / "adapter") == DEMO_ID == loading.hub_id(str(kept))
    with torch.no_grad():
        loaded = lc.from_pretrained(str(tmp_path / "adapter")).eval()
        torch.testing.assert_close(loaded(IDS).logits, logits, atol=1e-5, rtol=1e-4)
