"""`extend` from beginning to end on a tiny model."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_longctx as lc
from hf_longctx.training import extend, load_adapter

SMALL = {"data": "prose", "to": 128, "steps": 3, "batch": 2, "progress": False, "device": "cpu"}


@pytest.mark.parametrize("tune", ["lora", "lora-plus", "full"])
def test_the_result_loads_in_plain_transformers(tmp_path, tiny_folder, tune):
    record = extend(str(tiny_folder), out=tmp_path, tune=tune, learning_rate=1e-2, **SMALL)
    assert record["finished"]
    losses = [row["loss"] for row in record["stages"][0]["log"]]
    assert len(losses) == 3 and losses[-1] < losses[0]
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.max_position_embeddings == 128
    assert model.config.rope_parameters["rope_type"] == "yarn" and model.config.rope_parameters["factor"] == 2
    assert model.config.rope_parameters["original_max_position_embeddings"] == 64
    assert not lc.is_patched(model) and model.config.use_cache
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == 128
    stock = AutoModelForCausalLM.from_pretrained(tiny_folder)
    ids = torch.arange(3, 103)[None]
    with torch.no_grad():
        logits = model(ids).logits
        assert (logits - stock(ids).logits).abs().max() > 1e-2
        if tune != "full":
            lc.patch(stock, rope="yarn:2")
            torch.testing.assert_close(load_adapter(stock, tmp_path / "adapter").eval()(ids).logits, logits, atol=1e-5, rtol=1e-4)
        lc.patch(model, attention="window:16+global:2")  # trained in full, run under another pattern
        assert (model(ids).logits - logits).abs().max() > 1e-4
