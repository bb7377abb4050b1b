"""torch.compile of a patched model: the same logits, attention outside the graph; fullgraph is refused."""

from __future__ import annotations

import pytest
import torch

import hf_longctx as lc
from families import build, tokens
from hf_longctx.hf.eviction import EvictingLayer
from hf_longctx.patterns import Global, SlidingWindow

LENGTH = 24


@pytest.fixture
def model():
    torch._dynamo.reset()
    yield lc.patch(build("llama", num_hidden_layers=2), attention=SlidingWindow(5) | Global(2))
    torch._dynamo.reset()


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
    with pytest.raises(RuntimeError, match=r"use torch.compile\(model\) without fullgraph=True"), torch.no_grad():
        compiled(tokens(1, LENGTH), use_cache=False)


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
