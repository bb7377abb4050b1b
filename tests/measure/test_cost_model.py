"""Costs by formula: the figures everybody can check, brute force, and every pattern on every family."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hf_longctx as lc
from families import FAMILIES, build
from hf_longctx.hf.architecture import architecture
from hf_longctx.measure.cost_model import FLASH, STANDARD, Method, cost, longest, matrix_bytes, pairs
from hf_longctx.measure.public_models import config_of, public_models
from hf_longctx.measure.wall import TYPICAL, methods
from hf_longctx.patterns import Heads, SlidingWindow, gallery, parse
from hf_longctx.patterns.base import Pattern


@pytest.fixture(scope="module")
def llama():
    return architecture(config_of("llama-3.1-8b"))


def test_a_million_tokens_hit_the_wall(llama):
    """10^6 tokens: 10^12 scores, 2 TB in BF16 a head, and 32 layers of 32 heads make 1024 such matrices."""
    million = cost(llama, STANDARD, 10**6)
    assert million.matrix_bytes == 2 * 10**12
    assert million.layer_bytes == 32 * 2 * 10**12
    assert million.matrices == 1024
    assert million.all_scores_bytes == 1024 * 2 * 10**12
    # The same at 1m, which is 2^20 tokens: 2 TiB.
    assert cost(llama, STANDARD, 1 << 20, count=False).matrix_bytes == 2 * 2**40


def test_known_anchors(llama):
    """Llama 3.1 8B at 128K: 17.2 GB of keys and values, 67 GB of float32 logits, 1.1 TB of scores a layer."""
    at = cost(llama, STANDARD, 131072)
    assert at.cache_bytes == 131072 * 128 * 1024
    assert round(at.cache_bytes / 1e9, 1) == 17.2
    assert round(at.all_logits_bytes / 1e9) == 67
    assert round(at.layer_bytes / 1e12, 1) == 1.1
    for name, kib in {"llama-2-7b": 512, "llama-3-8b": 128, "mistral-7b-instruct-v0.2": 128, "qwen2.5-7b": 56}.items():
        assert cost(architecture(config_of(name)), FLASH, 1, count=False).cache_bytes == kib * 1024
    assert cost(architecture(config_of("smollm2-135m")), FLASH, 2, count=False).cache_bytes == 45 * 1024


@pytest.mark.parametrize("name", public_models())
def test_configs_give_the_published_parameter_count(name):
    assert architecture(config_of(name)).parameters == public_models()[name]["parameters"]


def test_a_mixture_of_experts_and_a_hybrid_count_what_a_token_passes():
    """Jamba: 52B parameters of which 12B are active; one layer of eight has a cache that grows."""
    a = architecture(config_of("jamba-v0.1"))
    assert round((a.active + 2 * a.vocabulary * a.hidden) / 1e9) == 12
    grow = cost(a, FLASH, 2000, count=False).cache_bytes - cost(a, FLASH, 1000, count=False).cache_bytes
    assert grow == 1000 * 4 * 4096
    windowed = Method("w", attention=SlidingWindow(64), patched=True)  # in the attention layers alone
    lost = cost(a, FLASH, 1000).cache_bytes - cost(a, windowed, 1000).cache_bytes
    assert 4 * 4096 * (1000 - 100) < lost < grow


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pattern", [str(p) for _, p in gallery()] + ["heads(window:5|full)", "0=full;*=window:9"])
def test_cache_is_what_describe_says(family, pattern):
    """One function behind both, stock and patched, so that the model, `describe` and the check agree."""
    model = build(family)
    a = architecture(model.config)
    stock, method = lc.describe(model), Method("m", attention=parse(pattern), patched=True)
    with lc.patched(model, attention=pattern):
        shown = lc.describe(model)
    for tokens in (1, 40, 300):
        assert cost(a, FLASH, tokens, itemsize=4).cache_bytes == stock.cache_bytes(tokens)
        assert cost(a, method, tokens, itemsize=4).cache_bytes == shown.cache_bytes(tokens)


@pytest.mark.parametrize("method", methods(), ids=lambda m: m.name)
def test_operations_by_brute_force(method):
    """4 D a visible pair and head, summed over layers; the whole square where the scores are stored."""
    n = 200
    a = architecture(build("llama").config)
    found = cost(a, method, n)
    if method.mamba is not None:
        assert cost(a, method, 2 * n).attention_flops == 2 * found.attention_flops
        assert cost(a, method, 2 * n).cache_bytes == found.cache_bytes
        return
    i = torch.arange(n)
    pattern = method.attention or parse("full")
    seen = pattern.allows(i[:, None], i[None, :]).expand(n, n) & (i[None, :] <= i[:, None])
    visible = n * n if method.materialised else int(seen.sum())
    assert found.attention_flops == a.layers * a.heads * 4 * a.head_dim * visible
    assert found.flops == found.attention_flops + 2 * a.active * n + 2 * a.vocabulary * a.hidden
    assert (found.matrices > 0) == method.materialised


def test_heads_are_counted_each():
    assert pairs(Heads([SlidingWindow(2), SlidingWindow(3)]), 10) == (19, 27)


def test_active_parameters_match_the_matrices():
    model = build("llama")
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    assert architecture(model.config).active == linear - model.lm_head.weight.numel()


class Odd(Pattern, name=None):
    """Known by its rule alone."""

    def allows(self, q, k, *, layer=0, head=0):
        return (q - k) % 2 == 1


def test_what_would_take_for_ever_to_count_is_unknown():
    a = architecture(build("llama").config)
    method = Method("odd", attention=Odd(), patched=True)
    assert cost(a, method, 100).flops is not None
    far = cost(a, method, 1 << 20)
    assert far.flops is None
    assert far.peak_bytes > far.weight_bytes


@given(
    st.integers(1, 1 << 22), st.integers(1, 1 << 22), st.sampled_from(["standard", "flash", "window:1024", "mamba2"])
)
@settings(max_examples=40, deadline=None)
def test_memory_never_falls_with_the_length(one, other, name):
    a = architecture_of_tiny()
    method = next(m for m in methods(["window:1024"]) if m.name == name)
    low, high = (cost(a, method, n, count=False).peak_bytes for n in sorted((one, other)))
    assert low <= high


def architecture_of_tiny(known={}):  # noqa: B006
    return known.setdefault("tiny", architecture(build("llama").config))


@given(st.integers(1, 10**13))
def test_longest_is_where_it_stops_fitting(memory):
    n = longest(lambda n: matrix_bytes(n, 2), memory)
    assert matrix_bytes(n, 2) <= memory < matrix_bytes(n + 1, 2)


def test_chunks_bound_scores_and_activations(llama):
    whole, parts = (cost(llama, STANDARD, 8192, chunk=chunk, count=False) for chunk in (None, 1024))
    assert parts.matrix_bytes * 8 == whole.matrix_bytes
    assert parts.peak_bytes < whole.peak_bytes
    assert parts.cache_bytes == whole.cache_bytes
    flat = [cost(llama, next(m for m in methods(["window:1024"]) if m.patched), n, chunk=1024, count=False)
            for n in (1 << 15, 1 << 20)]  # fmt: skip
    assert flat[0].peak_bytes == flat[1].peak_bytes


def test_typical_patterns_are_all_of_the_registry():
    assert {name for name, _ in gallery(TYPICAL)} == {name for name, _ in gallery()}


def test_a_length_below_one_is_refused(llama):
    with pytest.raises(ValueError, match="tokens is 0"):
        cost(llama, FLASH, 0)
    with pytest.raises(ValueError, match="chunk is 0"):
        cost(llama, FLASH, 8, chunk=0)
    with pytest.raises(ValueError, match="matches no layer"):
        cost(llama, Method("x", mamba="40"), 8)
