"""The contract: pattern x backend x family x case equals the stock eager model under the pattern as a dense mask."""

from __future__ import annotations

from itertools import combinations, product

import pytest
import torch
from transformers import DynamicCache, StaticCache

import flash_emulation
import hf_longctx as lc
from contract import CASES, LENGTH, PATTERNS, case_of, entries, expected, positions, run, single_patterns
from families import FAMILIES, SINKS, build, dense, padding, tokens
from hf_longctx.attention import BACKENDS, backends, break_even, check_backend, flash
from hf_longctx.hf.layers import plan_layers
from hf_longctx.patterns import Full, Global, Pattern, SlidingWindow
from pairs import covering, pairwise

#: Those whose kernel is stood in for on the CPU: FlexAttention by its own dense formula, flash by an emulation.
STAND_INS = ("flex", "flash")


def usable(name: str, backend: str) -> bool:
    """Whether a backend can do a pattern here, or by its stand-in."""
    if backend == "flash":
        return all(flash.window_of(p) is not None for p in single_patterns(name))
    try:
        for one in single_patterns(name):
            check_backend(one, backend, device=torch.device("cpu"), dtype=torch.float32)
    except ValueError:
        return backend in STAND_INS
    return True


def matrix():
    """`auto` in full, to the engine; of each named backend every pattern, with every other case, the families in turn.

    The fast suite has every pair of these (see `pairs.py`), the slow one all.
    """
    for i, name in enumerate(PATTERNS):
        for j, backend in enumerate(b for b in BACKENDS if usable(name, b)):
            for k, case in enumerate(CASES):
                able = [family for family in FAMILIES if family not in SINKS or backend not in STAND_INS]
                turn = (i + 3 * j + (i + j + k) // 2) % len(able)
                for m, family in enumerate(able):
                    rare = backend != "auto" or case in ("static cache", "packed")
                    if not rare or (m == turn and (backend == "auto" or (i + j + k) % 2)):
                        yield name, backend, family, case


@pytest.fixture
def stand_in(request, monkeypatch):
    """The kernels that need a GPU or a minute of compiling, replaced."""
    backend = request.node.callspec.params["backend"]
    if backend == "flex":
        request.getfixturevalue("eager_flex")
    if backend == "flash":
        call = flash._flash_attn(flash_emulation.flash_attn_varlen_func)
        monkeypatch.setattr(flash, "_kernel", lambda device: flash._Kernel("emulated", call))
        monkeypatch.setitem(backends._CANNOT, "flash", lambda _: None)


@pytest.fixture
def tiled(monkeypatch) -> set[Pattern]:
    """`auto` does with these inputs as it does with long ones. Gives the patterns that the engine ran."""
    ran, compute = set(), backends.ATTEND["tiled"]

    def note(query, key, value, pattern, *args, **kwargs):
        ran.add(pattern)
        return compute(query, key, value, pattern, *args, **kwargs)

    monkeypatch.setattr(break_even, "FEWEST", 0)
    monkeypatch.setattr(break_even, "MOST", 0)
    monkeypatch.setitem(backends.ATTEND, "tiled", note)
    return ran


@pytest.mark.parametrize(("name", "backend", "family", "case"), pairwise(rows=matrix()))
def test_contract(name, backend, family, case, stand_in, tiled):
    """Logits of every real token; see `contract.py` for the cases. `auto` takes each layer's pattern to the engine."""
    model = lc.patch(build(family), attention=PATTERNS[name], backend=backend)
    got, (want, real) = run(model, case_of(case, model.config)), expected(family, name, case)
    torch.testing.assert_close(got[real], want[real], atol=1e-4, rtol=1e-4)
    layers = [plan.pattern for plan in plan_layers(model, PATTERNS[name], "intersect")]
    assert tiled == (set(entries(layers)) if backend in ("auto", "tiled") else set())


def test_every_pair_is_among_those_tested():
    """Any two of pattern, backend, family and case, where the backend can do the pattern."""
    tested = covering(matrix())
    axes = (PATTERNS, BACKENDS, FAMILIES, CASES)
    for i, j in combinations(range(len(axes)), 2):
        possible = {(a, b) for a, b in product(axes[i], axes[j]) if (i, j) != (0, 1) or usable(a, b)}
        possible -= set(product(STAND_INS, SINKS))  # they take no sinks
        assert {(row[i], row[j]) for row in tested} == possible
    assert {b for b in BACKENDS if usable("random", b)} == set(BACKENDS) - {"flash"}


@pytest.mark.parametrize("family", FAMILIES)
def test_full_is_stock(family):
    """Full() changes nothing: logits to 1e-5, the same tokens under every way to generate."""
    ids, mask = tokens(2, 20), padding("left", 2, 20)
    stock, model = build(family), lc.patch(build(family), attention=Full())
    with torch.no_grad():
        torch.testing.assert_close(
            model(ids, attention_mask=mask).logits[mask.bool()],
            stock(ids, attention_mask=mask).logits[mask.bool()],
            atol=1e-5,
            rtol=1e-5,
        )
    greedy = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "disable_compile": True}
    caches = {"cache_implementation": "static"}, {"prefill_chunk_size": 6}, {"use_cache": False}
    for search, ways in (
        ({}, ({}, *caches)),
        ({"num_beams": 3}, ({},)),
        ({"num_beams": 2, "num_return_sequences": 2}, ({},)),
    ):
        expected = stock.generate(ids, **greedy, **search)
        for way in ways:
            assert torch.equal(model.generate(ids, **greedy, **search, **way), expected), (search, way)


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_is_the_same_with_and_without_a_cache(family):
    ids, mask = tokens(2, 20), padding("left", 2, 20)
    model = lc.patch(build(family), attention=PATTERNS["streaming"])
    how = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "disable_compile": True}
    slow = model.generate(ids, use_cache=False, **how)
    assert torch.equal(model.generate(ids, **how), slow)
    assert torch.equal(model.generate(ids, cache_implementation="static", **how), slow)
    assert torch.equal(model.generate(ids, prefill_chunk_size=7, **how), slow)


@pytest.mark.parametrize("family", ["mistral", "gemma3", "qwen2"])
def test_replacing_a_models_own_window(family):
    """With own_windows="replace" the pattern reaches past the layer's window, and the cache keeps what it needs."""
    ids, mask = tokens(2, LENGTH), padding("left", 2, LENGTH)
    pattern = SlidingWindow(2 * 12) | Global(3)
    model = build(family, attention="eager")
    with torch.no_grad(), dense(model, pattern, mask, own_windows="replace"):
        expected = model(ids, attention_mask=mask, position_ids=positions(mask)).logits
    model = lc.patch(build(family), attention=pattern, own_windows="replace")
    parts, cache = [], DynamicCache(config=model.config)
    with torch.no_grad():
        for start in range(0, LENGTH, 8):
            stop = start + 8
            step = {"position_ids": positions(mask)[:, start:stop], "past_key_values": cache}
            parts.append(model(ids[:, start:stop], attention_mask=mask[:, :stop], **step).logits)
        torch.testing.assert_close(torch.cat(parts, 1)[mask.bool()], expected[mask.bool()], atol=1e-4, rtol=1e-4)
        cache = model(ids[:, :30], use_cache=True).past_key_values
        assert cache.layers[0].keys.shape[2] == 30
    with pytest.raises(ValueError, match="static cache"):
        model(ids, past_key_values=StaticCache(config=model.config, max_cache_len=64))


def test_positions_that_skip_ahead_are_one_document():
    """A jump forward in position ids (as in position-skipping training) is no new document."""
    ids, model = tokens(1, 20), build("llama")
    skipping = torch.cat([torch.arange(10), torch.arange(30, 40)])[None]
    with torch.no_grad():
        expected = model(ids, attention_mask=torch.ones_like(ids), position_ids=skipping).logits
        lc.patch(model, attention=Full())
        torch.testing.assert_close(model(ids, position_ids=skipping).logits, expected, atol=1e-4, rtol=1e-4)
