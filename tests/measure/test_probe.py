"""Probing: sharing one reading gives what reading every prompt afresh gives, and the ruler measures what it should."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from families import FAMILIES, build
from hf_longctx import patched
from hf_longctx.hf.cache_argument import cache_name
from hf_longctx.hf.lengths import held_length
from hf_longctx.measure.controls import is_control
from hf_longctx.measure.needles import is_hit
from hf_longctx.measure.probe import Reader, ask, ask_all, clone_cache, stop_ids
from hf_longctx.measure.sharing import group


def replies(model, grid, probes, *, exact, per_length=False, hold=False, chunk=128, limit=None):
    """(length, depth, kind) to reply, of at most `limit` tokens."""
    found = {}
    for members in group(probes, exact=exact, per_length=per_length):
        members = [probe.afresh() for probe in members] if exact else members
        length = members[0].length
        with held_length(model, length) if hold else torch.no_grad():
            for index, reply in ask_all(
                Reader(model, chunk=chunk),
                members[-1].trunk,
                [replace(probe.branch(), limit=limit or probe.limit) for probe in members],
                wanted=lambda index: True,
                decode=grid.codec.decode,
                stops=frozenset(),
                one_sentence=True,
            ):
                found[members[index].length, members[index].depth, members[index].kind] = reply
    return found


def agree(shared, exact):
    assert shared.keys() == exact.keys()
    for cell, reply in shared.items():
        assert torch.allclose(reply.first_logits, exact[cell].first_logits, atol=1e-4, rtol=0), cell
        assert reply.ids == exact[cell].ids


@pytest.mark.parametrize("mode", ["shared", "single"])
@pytest.mark.parametrize("family", FAMILIES)
def test_shared_and_exact_agree_in_every_cell(make_grid, tokenizer, family, mode):
    model = build(family, vocab_size=len(tokenizer))
    grid = make_grid(tokenizer, lengths=(250, 500), depths=2, mode=mode)
    probes = grid.probes(0)
    shared = replies(model, grid, probes, exact=False, per_length=mode == "single", limit=4)
    agree(shared, replies(model, grid, probes, exact=True, chunk=4096, limit=4))
    assert len({reply.ids for reply in shared.values()}) > 1


@pytest.mark.parametrize(
    "definition",
    [{"rope": "yarn:2"}, {"attention": "window:40+global:4"}, {"attention": "dilated:16,4", "rope": "linear:2"}],
    ids=str,
)
def test_shared_and_exact_agree_when_patched(make_grid, tokenizer, definition):
    model = build("llama", vocab_size=len(tokenizer))
    grid = make_grid(tokenizer, lengths=(250, 500))
    probes = grid.probes(0)
    with patched(model, **definition):
        agree(*(replies(model, grid, probes, exact=exact, limit=4) for exact in (False, True)))


def test_a_length_dependent_rope_is_read_once_a_length(make_grid, tokenizer):
    model = build("llama", vocab_size=len(tokenizer))
    grid = make_grid(tokenizer, lengths=(250, 500))
    probes = grid.probes(0)
    with patched(model, rope="dynamic:1"):
        shared = replies(model, grid, probes, exact=False, per_length=True, hold=True, limit=4)
        agree(shared, replies(model, grid, probes, exact=True, hold=True, limit=4))


def test_a_fork_disturbs_nothing(tokenizer):
    model = build("mistral", vocab_size=len(tokenizer))
    reader = Reader(model)
    reader.feed(list(range(5, 40)))
    fork = reader.fork()
    first = fork.feed([7, 8, 9])
    reader.fork().feed([30] * 20)
    assert torch.equal(reader.fork().feed([7, 8, 9]), first)
    assert (reader.position, fork.position) == (35, 38)


def test_layers_that_may_write_in_place_are_copied():
    class Own(DynamicLayer):
        pass

    cache = DynamicCache()
    cache.layers = [DynamicLayer(), Own()]
    for layer in cache.layers:
        layer.update(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2))
    clone = clone_cache(cache)
    cache.layers[1].keys.fill_(1)
    assert clone.layers[1].keys.max() == 0
    clone.update(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2), 0)
    assert [layer.get_seq_length() for layer in cache.layers] == [3, 3]
    assert clone_cache(None) is None


class Induction:
    """An induction head in person: it says what followed the last time the latest tokens were seen, within a window.

    Nothing of a language model but its calling convention; what it recalls at which distance is known beforehand.
    """

    device = torch.device("cpu")

    def __init__(self, tokenizer, window):
        self.tokenizer, self.window = tokenizer, window
        self.generation_config = None
        self.config = SimpleNamespace(eos_token_id=tokenizer.eos_token_id)

    def __call__(self, *, input_ids, position_ids, use_cache, logits_to_keep, **cache):
        ids = [*(cache[cache_name()] or []), *input_ids[0].tolist()]
        assert position_ids[0].tolist() == list(range(len(ids) - input_ids.shape[1], len(ids)))
        logits = torch.zeros(1, 1, len(self.tokenizer))
        logits[0, 0, self._next(ids)] = 1.0
        return SimpleNamespace(logits=logits, **{cache_name(): ids})

    def _next(self, ids):
        best, said = 0, self.tokenizer.eos_token_id
        for at in range(max(0, len(ids) - self.window), len(ids) - 1):
            same = 0
            while same <= at and same < 40 and ids[at - same] == ids[len(ids) - 1 - same]:
                same += 1
            if same > best:
                best, said = same, ids[at + 1]
        return said


@pytest.mark.parametrize("mode", ["shared", "single"])
@pytest.mark.parametrize("window", [260, 10**6])
def test_the_ruler_measures_the_window(make_grid, tokenizer, mode, window):
    model = Induction(tokenizer, window)
    grid = make_grid(tokenizer, lengths=(300, 600), depths=6, mode=mode)
    probes = grid.probes(0)
    found = replies(model, grid, probes, exact=False, per_length=mode == "single")
    for probe in probes:
        hit = is_hit(found[probe.length, probe.depth, probe.kind].text, probe.needle)
        if is_control({"kind": probe.kind}):
            # Where the key is nowhere this head copies what stood behind the likest words, which may be any value.
            assert not hit or probe.kind != "control"
            continue
        # The value's last token is copied from behind the needle's prefix, while the answer grows.
        distance = len(probe.prompt()) - probe.needle_at
        if distance < window - 30:
            assert hit, (probe.length, probe.depth)
        elif distance > window + 30:
            assert not hit, (probe.length, probe.depth)


def test_an_answer_ends_with_its_line_its_sentence_or_the_budget(tokenizer):
    def say(text, **more):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]

        class Script(Induction):
            def _next(self, seen):
                return ids[len(seen) - 1] if len(seen) <= len(ids) else tokenizer.eos_token_id

        options = {"limit": 40, "one_sentence": True, "stops": stop_ids(Script(tokenizer, 1), tokenizer)} | more
        return ask(Reader(Script(tokenizer, 1)), [9], decode=tokenizer.decode, **options)

    assert say(" 12. 34").text == " 12."
    assert say(" So. It is 7\nor 8", one_sentence=False).text.strip() == "So. It is 7"
    assert len(say(" 1234567", limit=3).ids) == 3
    assert say("\n\n 7").text.strip() == "7"
    with pytest.raises(ValueError, match="tail is empty"):
        ask(
            Reader(Induction(tokenizer, 1)), [], limit=1, decode=tokenizer.decode, stops=frozenset(), one_sentence=True
        )
