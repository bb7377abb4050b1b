"""The oracle against the definition, token by token, for every pattern: those with and without pieces alike."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_cases import Case, cases, error, gradients, plain, seen
from hf_longctx.attention import attend
from hf_longctx.patterns import Block, Full, Heads, Pattern, Random, SlidingWindow


@given(cases(lengths=(1, 5, 40, 97)), st.sampled_from(["reference", "dense", "auto"]))
@settings(max_examples=80, deadline=None)
def test_every_backend_matches_the_definition(case: Case, backend: str):
    inputs = tuple(x.requires_grad_() for x in case.tensors)
    out = attend(*inputs, case.pattern, backend=backend, **case.where)
    exact = plain(*(x.double() for x in inputs), case.seen)
    assert error(out, exact) < 2e-6
    for got, want in zip(gradients(out, inputs), gradients(exact, inputs)):
        assert error(got, want) < 1e-5 * max(1, float(want.abs().max()))
    assert (out.masked_select(case.blind) == 0).all()


@given(cases(st.just(Full()), lengths=(7, 64)), st.sampled_from(["reference", "dense", "tiled"]))
@settings(max_examples=30, deadline=None)
def test_heads_have_patterns_of_their_own(case: Case, backend: str):
    """Random differs by key-value head and by layer, and Heads gives each head its pattern at its own index."""
    kv_heads = case.key.shape[1]
    group = case.query.shape[1] // kv_heads
    for pattern in (Random(2, 4), Heads([SlidingWindow(3), Random(1, 8)]) if kv_heads == 2 else Heads([Random(2, 4)])):
        out = attend(*case.tensors, pattern, backend=backend, layer=5, **case.where)
        for head in range(kv_heads):
            own = pattern.spread(kv_heads)[head] if isinstance(pattern, Heads) else pattern
            mask = seen(_At(own, 5, head), len(case.query), case.query.shape[2], case.key.shape[2], case.where)
            q = case.query[:, head * group : (head + 1) * group]
            want = plain(q, case.key[:, head : head + 1], case.value[:, head : head + 1], mask)
            assert error(out[:, head * group : (head + 1) * group], want) < 2e-6 * max(1, float(want.abs().max()))


class _At(Pattern, name=None):
    """A pattern held at one layer and head."""

    def __init__(self, pattern: Pattern, layer: int, head: int) -> None:
        self.__dict__.update(pattern=pattern, at={"layer": layer, "head": head})

    def allows(self, q, k, *, layer=0, head=0):
        return self.pattern.allows(q, k, **self.at)


def test_long_inputs_are_taken_a_few_rows_at_a_time(monkeypatch):
    """Chunking over rows changes nothing, in outputs and gradients."""
    from hf_longctx.attention import dense, reference

    rng = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 60, 8, generator=rng, requires_grad=True)
    key, value = (torch.randn(2, 2, 90, 8, generator=rng, requires_grad=True) for _ in range(2))
    for pattern in (Block(16), Random(1, 8)):
        for positions in (None, torch.arange(90)[None] + 3, torch.arange(90).flip(0)[None]):
            whole = attend(query, key, value, pattern, backend="reference", positions=positions)
            exact = gradients(whole, (query, key, value))
            monkeypatch.setattr(dense, "_MASK", 1000)
            monkeypatch.setattr(reference, "_SCORES", 10000)
            for backend in ("dense", "reference"):
                parts = attend(query, key, value, pattern, backend=backend, positions=positions)
                assert error(parts, whole) < 1e-6
                for a, b in zip(gradients(parts, (query, key, value)), exact):
                    assert error(a, b) < 1e-5
            monkeypatch.undo()


def test_low_precision_is_computed_in_float32():
    q = torch.randn(1, 2, 50, 16, dtype=torch.bfloat16)
    out = attend(q, q, q, Full(), backend="reference")
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, attend(q.float(), q.float(), q.float(), Full(), backend="reference").bfloat16())
