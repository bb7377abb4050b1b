"""The ruler is measured first: a model whose memory is known, and whether the measuring finds just that."""

import math

import pytest
import torch

from hf_longctx import patched
from hf_longctx.hf.mixers import mixers
from hf_longctx.mamba.mamba2 import LONGEST
from hf_longctx.measure.climb import run_effective
from hf_longctx.measure.evaluate import prompt_seed, run_tasks
from hf_longctx.measure.ruler_model import forgotten_after, ruler_model
from hf_longctx.measure.tasks import find
from hf_longctx.measure.word_tokenizer import WordTokenizer
from hf_longctx.patterns import gallery, names, parse

pytestmark = pytest.mark.usefixtures("six_tokens")

LENGTH = 400
CLAIMED = 1 << 14  # a variant claims 64 times as much, and its visible pairs are counted over all of it
DEPTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
SIZES = {  # sizes that fit the length; a pattern that is not listed is tested as the gallery draws it
    "block": "block:64,1",
    "dilated": "dilated:60,2",
    "fixed": "fixed:24,3",
    "global": "global:200",
    "random": "random:3,16,seed=1",
    "segment": "segment:128,2",
    "strided": "strided:64,3",
    "window": "window:150",
}


@pytest.fixture(scope="module")
def words():
    return WordTokenizer(4096)


@pytest.fixture(scope="module")
def ruler(words):
    return ruler_model(words, claimed=CLAIMED)


@pytest.fixture(scope="module")
def linear(words):
    return ruler_model(words, linear=True, claimed=CLAIMED)


@pytest.fixture(scope="module")
def probes(words):
    """Prompts with the fact at each depth, and the distance from its value to the prompt's end."""
    prompts = [find("passkey")(words, LENGTH, seed, depth) for seed in range(2) for depth in DEPTHS]
    (value,) = {len(words(f" {prompt.expected[0]}", add_special_tokens=False)["input_ids"]) for prompt in prompts}
    assert value == 1
    return [(prompt, _value_at(prompt, words)) for prompt in prompts]


def _value_at(prompt, words):
    (token,) = words(f" {prompt.expected[0]}", add_special_tokens=False)["input_ids"]
    return prompt.ids.index(token)


def recalls(model, prompt, words):
    logits = model(torch.tensor([prompt.ids]), logits_to_keep=1).logits[0, -1]
    return prompt.score(words.decode([int(logits.argmax())])) == 1.0


def test_with_full_attention_it_never_fails(ruler, words):
    for length in (300, 900):
        for depth in DEPTHS:
            assert recalls(ruler, find("passkey")(words, length, length, depth), words)


@pytest.mark.parametrize("name", names())
def test_it_recalls_exactly_what_its_retrieval_layer_sees(name, ruler, words, probes):
    pattern = parse(SIZES.get(name) or {key: str(drawn) for key, drawn in gallery()}[name])
    expected, found = [], []
    with patched(ruler, attention=f"-1={pattern}"):
        for prompt, at in probes:
            q, k = torch.tensor(len(prompt.ids) - 1), torch.tensor(at)
            expected.append(bool(pattern.allows(q, k, layer=1, head=0)))
            found.append(recalls(ruler, prompt, words))
    assert found == expected
    if name in SIZES:  # sizes are chosen so that there is something to tell apart
        assert len(set(expected)) == 2


@pytest.mark.parametrize("window", [120, 300])
def test_the_distance_found_is_the_window_to_the_token(window, ruler, words):
    """Move the fact token by token over the window's edge."""
    (value,) = words(" 54321", add_special_tokens=False)["input_ids"]
    lead = words("The pass key is", add_special_tokens=False)["input_ids"]
    idle = words(" Nothing else happens", add_special_tokens=False)["input_ids"]
    with patched(ruler, attention=f"-1=window:{window}"):
        for distance in (window - 2, window - 1, window, window + 1):
            between = (idle * distance)[: distance - len(lead)]
            ids = [0, *idle, *lead, value, *between, *words(" The pass key is", add_special_tokens=False)["input_ids"]]
            assert len(ids) - 1 - ids.index(value) == distance
            said = int(ruler(torch.tensor([ids])).logits[0, -1].argmax())
            assert (said == value) == (distance < window)


@pytest.mark.parametrize(("rope", "works"), [("linear:4", False), ("linear:64", False), ("ntk:64", True)])
def test_with_broken_positions_it_fails(rope, works, ruler, words, probes):
    """NTK leaves the fastest pair of dimensions alone, and with it the neighbours; linear squeezes them together."""
    with patched(ruler, rope=rope):
        assert {recalls(ruler, prompt, words) for prompt, _ in probes} == {works}


@pytest.mark.parametrize("relays", [1, 2])
def test_stacked_windows_reach_further(relays, words, probes):
    window = 120
    model = ruler_model(words, relays=relays)
    for prompt, _ in probes[: len(DEPTHS)]:
        assert recalls(model, prompt, words)
    with patched(model, attention=f"1:={parse(f'window:{window}')}"):
        for prompt, at in probes:
            distance = len(prompt.ids) - 1 - at
            assert recalls(model, prompt, words) == (distance <= (relays + 1) * (window - 1))


def facts_apart(words, distance, *, nearer=()):
    """A prompt that asks for the number of Rome, told `distance` tokens before its end, and others since."""

    def ids(text):
        return words(text, add_special_tokens=False)["input_ids"]

    after = [token for text in nearer for token in ids(text)] + ids(" The key of Rome is")
    idle = (ids(" Nothing else happens") * distance)[: distance - len(after)]
    prompt = [0, *ids("The key of Rome is 41"), *idle, *after]
    assert len(prompt) - 1 - prompt.index(*ids(" 41")) == distance
    return prompt


def says(model, words, prompt):
    return words.decode([int(model(torch.tensor([prompt]), logits_to_keep=1).logits[0, -1].argmax())])


@pytest.mark.parametrize("memory", [3, 8, 20])
def test_a_state_forgets_where_its_decay_says(memory, linear, words, probes):
    """The last token recalled is the one of the formula, whatever newer facts the state has taken in."""
    edge = math.floor(forgotten_after(memory))
    with patched(linear, mamba=f"-1,memory={memory}"):
        for distance, said in ((edge, " 41"), (edge + 1, "")):
            for nearer in ((), (" The key of Oslo is 87.", " The gate of Kyiv is 63.")):
                assert says(linear, words, facts_apart(words, distance, nearer=nearer)) == said
        found = [recalls(linear, prompt, words) for prompt, _ in probes]
    assert found == [len(prompt.ids) - 1 - at <= edge for prompt, at in probes]
    assert len(set(found)) == 2


def test_a_state_that_does_not_decay_never_forgets(linear, words):
    """Rate 0 and scale 1 are written into the layer: a sum over all that was read, without a mean."""
    with patched(linear, mamba="-1", attention="0=window:8"), torch.no_grad():
        (mixer,) = mixers(linear).values()
        mixer.A_log.fill_(-math.inf)
        mixer.scale.fill_(mixer.form.scale)
        for distance in (300, 1000, 4000):
            assert says(linear, words, facts_apart(words, distance, nearer=(" The key of Oslo is 87.",))) == " 41"


HARNESS = {  # what makes a ruler forget, and from which distance on it does
    "window": ({}, "attention=-1=window:128", 128),
    "state": ({"linear": True}, "mamba=-1,memory=6", forgotten_after(6)),
}


@pytest.mark.parametrize("name", HARNESS)
def test_the_harness_measures_about_what_is_remembered(name, words):
    """Depths are drawn evenly, so the score at length n is about W / n, and crosses 85.6% at about W / 0.856."""
    made, variant, remembered = HARNESS[name]
    found = run_effective(
        ruler_model(words, claimed=CLAIMED, **made),
        words,
        tasks=["passkey"],
        lengths=[100, 128, 256],
        trials=60,
        bisections=1,
        confidence=0.8,
        stock=False,
        variants=[f"{name}: {variant}"],
    )["variants"][name]
    for rule, line in (("absolute", 0.856), ("own", 0.85)):
        cut = found["effective"][rule]
        assert cut["low"] <= remembered / line < cut["high"]
        assert cut["low"] == 128
        assert 0.8 * remembered < cut["curve"]["length"] < 1.5 * remembered
    assert found["control"]["trusted"]
    assert not found["control"]["no-needle"]["hits"]


def test_the_harness_tells_memories_apart(linear, words):
    """The same prompts for all: stock and the longest memory recall each, a short one the near facts alone."""
    summary = run_tasks(
        linear,
        words,
        tasks=["passkey"],
        lengths=[400],
        trials=10,
        variants=["short: mamba=-1,memory=8", f"long: mamba=-1,memory={LONGEST}"],
    )
    hits = {name: found["cells"][0]["hits"] for name, found in summary["variants"].items()}
    prompts = [find("passkey")(words, 400, prompt_seed(0, trial)) for trial in range(10)]
    near = [len(prompt.ids) - 1 - _value_at(prompt, words) < forgotten_after(8) for prompt in prompts]
    assert hits == {"stock": 10, "short": sum(near), "long": 10}
    assert 0 < sum(near) < 10


def test_the_harness_says_so_where_positions_are_broken(ruler, words):
    summary = run_tasks(ruler, words, tasks=["passkey"], lengths=[300], trials=4, variants=["broken: rope=linear:64"])
    stock, broken = (summary["variants"][name]["cells"][0] for name in ("stock", "broken"))
    assert (stock["hits"], broken["hits"]) == (4, 0)
    (pair,) = summary["paired"][0]["lengths"]
    assert (pair["only_first"], pair["only_other"], pair["p"]) == (4, 0, 0.125)
    assert (pair["difference"], pair["low"], pair["high"]) == (-1.0, -1.0, -1.0)


def test_positions_never_look_alike():
    """The first layer tells any two of a million distances apart, by 50 logits and more."""
    from hf_longctx.measure import ruler_model as written

    speed = written._THETA ** (-torch.arange(written._TURNING).double() / written._HALF)
    apart = torch.arange(1, 1 << 20).double()
    least = min(float((1 - torch.cos(speed[:, None] * part)).sum(0).min()) for part in apart.split(1 << 17))
    assert least * written._SHARP > 50
    still = written._THETA ** (-written._STILL / written._HALF)
    assert still * (1 << 20) < 0.01 * math.pi


def test_relays_are_counted():
    with pytest.raises(ValueError, match="relays=-1"):
        ruler_model(WordTokenizer(64), relays=-1)
    with pytest.raises(ValueError, match="relays=1 with linear=True"):
        ruler_model(WordTokenizer(64), relays=1, linear=True)
