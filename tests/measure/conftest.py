"""A tiny tokenizer and a tiny model that fit each other, made on the spot."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_longctx.measure import prompts
from hf_longctx.measure.grid import build_grid
from hf_longctx.measure.haystack import open_haystack
from hf_longctx.measure.placement import depth_grid
from hf_longctx.measure.tasks import REGISTRY
from tiny_model import make_prose_tokenizer


def make_model(tokenizer, seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(autouse=True)
def answers_are_short(request, monkeypatch):
    """Each token is a forward, and these models have nothing to say; not where other processes ask too."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(prompts, "_SLACK", 0)


@pytest.fixture(autouse=True)
def sentences_come_a_few_at_a_time(monkeypatch):
    """Prompts of some hundred tokens need no more; what is not needed is written and tokenised all the same."""
    monkeypatch.setattr(prompts, "_BATCH", 16)


@pytest.fixture
def four_tokens(request, monkeypatch, answers_are_short):
    """Fewer than a needle's value has, where all that is looked at is whether two answers are the same."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(prompts, "_SLACK", -5)


@pytest.fixture
def six_tokens(monkeypatch):
    """No task decodes more: an answer is settled sooner where a model knows it, and never where it does not."""
    for name, task in REGISTRY.items():
        monkeypatch.setitem(REGISTRY, name, replace(task, budget=6))


@pytest.fixture(scope="session")
def tokenizer():
    return make_prose_tokenizer()


@pytest.fixture(scope="session")
def plain_tokenizer():
    return make_prose_tokenizer(bos=False, template=False)


@pytest.fixture(scope="session")
def model(tokenizer):
    return make_model(tokenizer)


@pytest.fixture(scope="session")
def make_grid():
    """Build a grid over generated prose; whatever is not given has a small default."""

    def make(tokenizer, *, lengths=(300, 600), depths=3, values="digits", mode="shared", style="prefix", **more):
        hay = more.pop("haystack", open_haystack("prose"))
        settings = {"lengths": lengths, "depths": depth_grid(depths), "values": values, "mode": mode, "style": style}
        return build_grid(tokenizer, hay, **settings, seed=more.pop("seed", 0), **more)

    return make
