"""torch.compile of a patched model and of the operators: the same results, ours outside the graph; no fullgraph."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from transformers import CompileConfig

import hf_longctx as lc
from families import build, tokens
from hf_longctx.attention import attend
from hf_longctx.hf.eviction import EvictingLayer
from hf_longctx.mamba import ssd
from hf_longctx.patterns import Global, SlidingWindow

LENGTH = 24


ADVICE = "run outside the compiled graph: use torch.compile without fullgraph=True"


@pytest.fixture(autouse=True)
def afresh():
    """Nothing is compiled yet, and what is stays here."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def model():
    return lc.patch(build("llama", num_hidden_layers=2), attention=SlidingWindow(5) | Global(2))


def test_the_rest_of_the_model_is_compiled(model):
    ids, graphs = tokens(1, LENGTH), []

    def count(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        got = torch.compile(model, backend=count)(ids, use_cache=False).logits
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert len(graphs) > 2


def test_one_graph_for_all_is_refused_and_says_what_to_do(model):
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with pytest.raises(RuntimeError, match=ADVICE), torch.no_grad():
        compiled(tokens(1, LENGTH), use_cache=False)


def test_operators_in_a_compiled_step_compile_nothing_anew():
    """Whatever the lengths and patterns after the first, forward and backward within the compiled function."""

    def step(pattern, query, key, value):
        out = attend(2 * query, key, value, pattern, backend="tiled")
        x, rates = out.transpose(1, 2), torch.ones(query.shape[1])
        out = ssd(x, x[..., 0] ** 2, -rates, key.transpose(1, 2), value.transpose(1, 2))
        (out * out).sum().backward()
        return out + 1, query.grad, key.grad, value.grad

    graphs, seen = CompileCounter(), []
    compiled = torch.compile(step, backend=graphs, dynamic=True)
    for n, pattern in [(9, "window:4"), (12, "window:3+global:1"), (17, "strided:3,3")]:
        inputs = [torch.randn(1, heads, n, 8) for heads in (4, 2, 2)]
        got, expected = (run(pattern, *(x.clone().requires_grad_() for x in inputs)) for run in (compiled, step))
        torch.testing.assert_close(got, expected)
        seen.append(graphs.frame_count)
    assert 0 < seen[0] == seen[-1]


@pytest.mark.parametrize(
    "operator",
    [lambda x: attend(x, x, x, "window:4"), lambda x: ssd(x, x[..., 0], x[0, 0, :, 0], x, x)],
    ids=["attend", "ssd"],
)
def test_operators_in_one_graph_are_refused_and_say_what_to_do(operator):
    with pytest.raises(RuntimeError, match=ADVICE):
        torch.compile(operator, backend="eager", fullgraph=True)(torch.randn(1, 4, 9, 8))


@pytest.mark.slow
def test_the_default_compiler_with_a_cache(model):
    """In pieces and token by token, with a cache that drops keys."""
    ids = tokens(1, LENGTH)
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        compiled, cache = torch.compile(model), None
        for start, stop in [(0, 8), (8, 16), *((i, i + 1) for i in range(16, LENGTH))]:
            out = compiled(ids[:, start:stop], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            torch.testing.assert_close(out.logits, expected[:, start:stop], atol=1e-4, rtol=1e-4)
    assert isinstance(cache.layers[0], EvictingLayer)
    assert cache.layers[0].keys.shape[2] <= 8


@torch.no_grad()
def test_generate_compiles_by_itself_with_a_static_cache(model):
    """On CUDA transformers does so unasked; the same path is asked for here."""
    ids, how = tokens(2, LENGTH), {"max_new_tokens": 8, "do_sample": False, "cache_implementation": "static"}
    expected = model.generate(ids, **how, disable_compile=True)
    config = CompileConfig(backend="eager", mode="default")
    config._compile_all_devices = True
    assert torch.equal(model.generate(ids, **how, compile_config=config), expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"]
