"""The flex backend: block masks exact and shared, nothing compiled twice, and what is refused."""

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from torch._dynamo.utils import counters

from attention_cases import Case, Odd, cases, error, patterns
from hf_longctx.attention import attend, flex
from hf_longctx.attention.layout import Layout
from hf_longctx.attention.request import Request
from hf_longctx.patterns import Block, Full, Global, Heads, Random, SlidingWindow, parse

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def held(mask, layout: Layout, heads: int) -> torch.Tensor:
    """What a block mask lets through, (B or 1, heads or 1, rows, keys): full blocks, and partial ones by the rule."""
    block, rows, keys = mask.block, layout.queries, layout.keys
    full, partly = torch.zeros(2, *block.kv_indices.shape, dtype=torch.bool)
    for number, indices, into in (
        (block.kv_num_blocks, block.kv_indices, partly),
        (block.full_kv_num_blocks, block.full_kv_indices, full),
    ):
        listed = torch.arange(indices.shape[-1]) < number[..., None]
        into.scatter_(3, indices.long(), listed)
    assert not bool((full & partly).any())
    b, h, q, k = (torch.arange(n) for n in (*block.kv_indices.shape[:2], rows, keys))
    rule = block.mask_mod(b[:, None, None, None], h[:, None, None], q[:, None], k)
    full, partly = (
        x.repeat_interleave(flex.BLOCK, 2).repeat_interleave(flex.BLOCK, 3)[:, :, :rows, :keys] for x in (full, partly)
    )
    assert torch.equal(full | (partly & rule), rule)  # where blocks are not looked at, the rule alone is right too
    return rule


@given(cases(patterns(), lengths=(1, 2, 31, 129, 257)))
@settings(max_examples=80, deadline=None)
def test_block_masks_hold_exactly_what_is_seen(case: Case):
    layout = Layout.of(case.query.shape[2], case.key.shape[2], **case.where)
    kv_heads = case.key.shape[1]
    group = case.query.shape[1] // kv_heads
    mask = flex.block_mask(case.pattern, layout, CPU, heads=range(kv_heads), group=group)
    seen, got = case.seen, held(mask, layout, kv_heads)
    seen = seen.repeat_interleave(group, 1) if seen.shape[1] > 1 else seen
    assert torch.equal(got.expand(seen.shape), seen)
    for kept, whole in ((mask.blind, ~case.seen.any(3)), (mask.unread, ~case.seen.any(2))):
        assert (kept is None and not bool(whole.any())) or torch.equal(kept.expand(whole.shape), whole)


@pytest.mark.parametrize("padded", [False, True])
def test_heads_of_a_group_share_what_other_heads_do_not(eager_flex, padded):
    """A pattern by head under grouped queries: every head, and every row of the batch, finds its own table."""
    rng = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 6, 257, 8, generator=rng), torch.randn(2, 2, 257, 8, generator=rng)
    where = {"valid": torch.arange(257) >= torch.tensor([[0], [90]])} if padded else {}
    case = Case(q, k, k, parse("random:2,16+window:3"), where)
    mask = flex.block_mask(case.pattern, Layout.of(257, 257, **where), CPU, heads=range(2), group=3)
    got = held(mask, Layout.of(257, 257, **where), 2)
    assert torch.equal(got.expand(2, -1, -1, -1), case.seen.repeat_interleave(3, 1))
    got, want = (attend(q, k, k, case.pattern, backend=b, **where) for b in ("flex", "reference"))
    assert error(got, want) < 2e-6


@given(cases(patterns(), lengths=(1, 2, 31, 97, 257)))
@example(Case(*(torch.randn(1, 2, 9, 8) for _ in range(3)), Odd()))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_equal_to_the_reference_and_reads_nothing_that_no_row_sees(eager_flex, case: Case):
    dead_rows, dead_keys = case.blind, ~case.seen.any(2)[..., None]
    inputs = [x.masked_fill(d, float("nan")) for x, d in zip(case.tensors, (dead_rows, dead_keys, dead_keys))]
    # In float64: the reference's own rounding is as large as what is looked for.
    exact = attend(*case.to(torch.float64).tensors, case.pattern, backend="reference", **case.where)
    assert error(attend(*inputs, case.pattern, backend="flex", **case.where), exact) < 2e-6


def test_compiled_once_for_all_patterns_layers_and_lengths():
    """The real thing, compiled for this CPU: many masks and lengths, one compilation."""
    rng = torch.Generator().manual_seed(0)
    torch._dynamo.reset()
    counters.clear()
    steps = [
        ("window:200+global:4", 300, 0),
        ("window:200+global:4", 301, 1),  # the length grows by one
        ("dilated:16,4", 640, 0),
        ("block:64,1", 515, 0),
        ("full", 1000, 0),
    ]
    for text, n, layer in steps:
        q, k, v = (torch.randn(1, heads, n, 32, generator=rng) for heads in (4, 2, 2))
        got = attend(q, k, v, text, backend="flex", layer=layer)
        assert error(got, attend(q, k, v, text, backend="reference", layer=layer)) < 5e-6, text
    assert counters["stats"]["unique_graphs"] == 1


@pytest.fixture
def counted(monkeypatch):
    """Compiled by nobody, but traced and guarded as for CUDA: counts graphs."""
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(flex_attention, dynamic=True, fullgraph=True, backend="eager")
    monkeypatch.setattr(flex, "_compiled", lambda: compiled)
    yield counters["stats"]
    torch._dynamo.reset()


def test_a_new_mask_is_no_new_graph(counted):
    """By layer, by head, padded: the graph knows the shapes of the mask, not what is in it."""
    rng = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 4, 200, 16, generator=rng), torch.randn(2, 2, 200, 16, generator=rng)
    graphs = []
    for layer in range(2):
        for pattern in (Random(2, 32) | SlidingWindow(8), Random(1, 16, seed=5) | SlidingWindow(40)):
            attend(q, k, k, pattern, backend="flex", layer=layer)
    graphs.append(counted["unique_graphs"])
    for cut in (3, 150):
        for pattern in (Full(), SlidingWindow(9), Block(64)):
            attend(q, k, k, pattern, backend="flex", valid=(torch.arange(200) >= cut).expand(2, -1))
    graphs.append(counted["unique_graphs"])
    assert graphs == [1, 2]


def test_decoding_compiles_nothing(counted):
    """A cache that grows by a token: the visible keys are gathered, with no block mask and no graph."""
    before = len(flex.MASKS)
    for n in range(200, 212):
        q, k = torch.randn(1, 4, 1, 16), torch.randn(1, 2, n, 16)
        got = attend(q, k, k, "window:50+global:2", backend="flex")
        assert error(got, attend(q, k, k, "window:50+global:2", backend="reference")) < 2e-6
    assert counted.get("unique_graphs", 0) == 0
    assert len(flex.MASKS) == before


def test_prompts_in_chunks_compile_once(counted):
    """Each chunk has the same rows and more keys."""
    k = torch.randn(1, 2, 600, 16)
    for stop in range(300, 600, 60):
        q = torch.randn(1, 4, 40, 16)
        got = attend(q, k[:, :, :stop], k[:, :, :stop], "window:50+global:2", backend="flex")
        assert got.shape == q.shape
    assert counted["unique_graphs"] == 1


def test_masks_are_shared_and_few():
    """Layers share a mask unless the pattern differs by layer; padded calls share one by their tensors."""
    layout = Layout.of(300, 300)

    def mask(text, layer=0, layout=layout):
        return flex.block_mask(parse(text), layout, CPU, layer=layer)

    assert mask("window:50", 0) is mask("window:50", 7)
    assert mask("window:50") is not mask("window:51")
    assert mask("random:2,32", 0) is not mask("random:2,32", 7)
    assert mask("random:2,32", 7) is mask("random:2,32", 7)
    padded = Layout.of(300, 300, valid=torch.ones(1, 300, dtype=torch.bool))
    assert mask("window:50", layout=padded) is mask("window:50", 3, layout=padded)
    for n in range(200, 200 + 2 * flex.MASKS.size):
        mask("window:50", layout=Layout.of(n, n))
    assert len(flex.MASKS) == flex.MASKS.size


def test_what_is_kept_does_not_grow_with_the_pairs():
    """At 8K tokens, a number for each of 4096 blocks, and 16 different blocks at most: the least that is set aside."""
    layout = Layout.of(8192, 8192)
    for text in ("window:1024+global:4", "block:512,1", "strided:128,128", "bigbird"):
        block = flex.block_mask(parse(text), layout, CPU).block
        tables = [c.cell_contents.numel() for c in block.mask_mod.__closure__ if torch.is_tensor(c.cell_contents)]
        assert sorted(tables) == [4, 1 << 15, 1 << 15], text


def test_memory_of_building_is_that_of_a_stripe():
    """No call on the way asks the pattern for more than a stripe of blocks."""
    asked = []

    class Watched(SlidingWindow, name=None):
        by_head = False  # it hands `head` on to a rule that does not care
        rows, pieces = SlidingWindow.rows, SlidingWindow.pieces

        def allows(self, q, k, *, layer=0, head=0):
            asked.append(q.numel() * k.numel())
            return super().allows(q, k, layer=layer, head=head)

    flex.block_mask(Watched(100), Layout.of(4096, 4096), CPU)
    assert max(asked) <= flex.BLOCK * flex.BLOCK * flex._BLOCKS["cpu"]
    assert sum(asked) <= 4096 * 4 * flex.BLOCK  # and only about the blocks near the window


def test_gradients_on_the_cpu_and_unfit_dtypes_are_refused():
    q = torch.randn(1, 1, 20, 8, requires_grad=True)
    with pytest.raises(ValueError, match="'flex'.*no backward on the CPU.*'tiled'"):
        attend(q, q, q, Full(), backend="flex")
    with pytest.raises(ValueError, match="'flex'.*float32, bfloat16, float16, not float64.*'tiled'"):
        attend(*(q.detach().double() for _ in range(3)), Full(), backend="flex")
    assert "xpu" in flex.cannot(Request(Full(), torch.device("xpu"), torch.float32))


def test_no_compiler_is_said(monkeypatch):
    monkeypatch.setattr(flex.importlib.util, "find_spec", lambda name: None)
    flex._no_compiler.cache_clear()
    try:
        reason = flex.cannot(Request(Full(), torch.device("cuda"), torch.bfloat16))
    finally:
        flex._no_compiler.cache_clear()
    assert "pip install triton" in reason


def test_heads_with_patterns_of_their_own(eager_flex):
    q, k = torch.randn(1, 6, 150, 8), torch.randn(1, 3, 150, 8)
    pattern = Heads([SlidingWindow(20), Full(), Random(2, 16) | Global(1)])
    got, want = (attend(q, k, k, pattern, backend=b) for b in ("flex", "reference"))
    assert error(got, want) < 2e-6


def test_values_of_another_head_size(eager_flex):
    q, v = torch.randn(1, 2, 150, 8), torch.randn(1, 2, 150, 5)
    got, want = (attend(q, q, v, SlidingWindow(20), backend=b) for b in ("flex", "reference"))
    assert error(got, want) < 2e-6
