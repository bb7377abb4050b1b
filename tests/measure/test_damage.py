"""Short-context damage: equal to what plain full forwards give, whatever the reading, the kill or the variant."""

import json
import math

import pytest
import torch

from families import FAMILIES, build
from hf_longctx import patched
from hf_longctx.hf.lengths import held_length
from hf_longctx.measure import damage as module
from hf_longctx.measure import report, run_needle
from hf_longctx.measure.damage import damage_lines, draw_bins, edges, summarise_damage
from hf_longctx.measure.listener import Listener

SETTINGS = {"lengths": [200, 400], "depths": 2, "progress": False}
WINDOW = "window: attention=window:8+global:4"


@pytest.fixture(autouse=True)
def quick(monkeypatch, four_tokens):
    """Runs without drawing the page, over few tokens."""
    monkeypatch.setattr(report, "attempt", lambda out: None)
    monkeypatch.setattr(module, "TOKENS", 24)


def rows_of(out):
    rows = [json.loads(line) for line in (out / "damage.jsonl").read_text().splitlines()]
    return {(row["variant"], row["stop"]): row for row in rows}


def plain(model, tokenizer, make_grid, definition=None, length=None, **more):
    """(nll, log-probabilities) of every token of the text of the first trial, by one full forward without a cache."""
    grid = make_grid(tokenizer, lengths=(200, 400), **{"depths": SETTINGS["depths"]} | more)
    probe = grid.probes(0)[-1]
    ids = torch.tensor([list(probe.trunk[: probe.at])])
    with torch.no_grad():
        if definition:
            with patched(model, **definition), held_length(model, length or ids.shape[1]):
                logits = model(ids, use_cache=False).logits[0]
        else:
            logits = model(ids, use_cache=False).logits[0]
    said = logits.double().log_softmax(-1)
    return -said[:-1].gather(1, ids[0, 1:, None])[:, 0], said


def agree(row, nll, said, stock=None):
    places = torch.tensor(row["places"])
    assert row["nll"] == pytest.approx(nll[places - 1].tolist(), abs=2e-4)
    if stock is None:
        assert row["kl"] is None
        return
    p, q = stock[places - 1], said[places - 1]
    kl = (p.exp() * (p - q)).sum(-1)
    assert row["kl"] == pytest.approx(kl.tolist(), abs=2e-4)
    assert row["same"] == (p.argmax(-1) == q.argmax(-1)).int().tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_agrees_with_a_full_forward(tokenizer, make_grid, tmp_path, family):
    model = build(family, vocab_size=len(tokenizer), max_position_embeddings=512)
    run_needle(model, tokenizer, variants=[WINDOW], out=tmp_path, **SETTINGS | {"depths": 1})
    rows = rows_of(tmp_path)
    assert set(rows) == {(name, stop) for name in ("stock", "window") for stop in (200, 400)}
    nll, stock = plain(model, tokenizer, make_grid, depths=1)
    far, said = plain(model, tokenizer, make_grid, {"attention": "window:8+global:4"}, depths=1)
    for stop in (200, 400):
        agree(rows["stock", stop], nll, stock)
        agree(rows["window", stop], far, said, stock)
    assert sum(rows["window", 400]["kl"]) > 0.01  # the window does change something


@pytest.mark.parametrize("more", [{"needles": "single"}, {"exact": True}, {"style": "base"}], ids=str)
def test_it_is_heard_in_every_kind_of_reading(model, tokenizer, make_grid, tmp_path, more):
    run_needle(model, tokenizer, variants=[WINDOW], out=tmp_path, **SETTINGS, **more)
    same = {"mode": more.get("needles", "shared"), "style": more.get("style", "prefix")}
    nll, stock = plain(model, tokenizer, make_grid, **same)
    far, said = plain(model, tokenizer, make_grid, {"attention": "window:8+global:4"}, **same)
    for (name, _), row in rows_of(tmp_path).items():
        agree(row, *((nll, stock) if name == "stock" else (far, said, stock)))


def test_rope_that_follows_the_length_is_heard_at_the_longest(model, tokenizer, make_grid, tmp_path):
    lengths = {"lengths": [400, 800]}
    run_needle(model, tokenizer, variants=["d: rope=dynamic:1"], out=tmp_path, **(SETTINGS | lengths))
    grid = make_grid(tokenizer, lengths=(400, 800), depths=SETTINGS["depths"])
    probe = grid.probes(0)[-1]
    ids = torch.tensor([list(probe.trunk[: probe.at])])
    with torch.no_grad(), patched(model, rope="dynamic:1"), held_length(model, 800):
        said = model(ids, use_cache=False).logits[0].double().log_softmax(-1)
    nll = -said[:-1].gather(1, ids[0, 1:, None])[:, 0]
    for stop in (400, 800):
        row = rows_of(tmp_path)["d", stop]
        assert row["nll"] == pytest.approx(nll[torch.tensor(row["places"]) - 1].tolist(), abs=2e-4)


def test_a_model_that_switches_its_own_rope_is_heard_too(tokenizer, make_grid, tmp_path):
    parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = build("llama", vocab_size=len(tokenizer), rope_parameters=parameters)
    found = run_needle(model, tokenizer, out=tmp_path, **SETTINGS)["damage"]["stock"]
    assert [part["tokens"] for part in found] == [24, 24]


def test_answers_are_the_same_with_and_without(model, tokenizer):
    def rows(**more):
        found = []
        summary = run_needle(model, tokenizer, variants=[WINDOW], on_row=found.append, **SETTINGS, **more)
        return [{**row, "seconds": None} for row in found], summary["damage"]

    (without, nothing), (together, something) = rows(damage=False), rows()
    assert without == together
    assert nothing == {"stock": [], "window": []}
    assert all(len(parts) == 2 for parts in something.values())


@pytest.mark.parametrize("stop_at", [pytest.param("stock", marks=pytest.mark.slow), "window"])
def test_a_killed_run_ends_with_the_same_figures(model, tokenizer, tmp_path, stop_at):
    options = {"variants": [WINDOW, "linear2: rope=linear:2"], "trials": 2, **SETTINGS}
    whole = run_needle(model, tokenizer, out=tmp_path / "whole", **options)
    seen = []

    def stop(row):
        seen.append(row)
        if row["variant"] == stop_at and row["trial"] == 1:
            raise KeyboardInterrupt

    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run_needle(model, tokenizer, out=out, on_row=stop, **options)
    before = rows_of(out)
    assert (stop_at, 400) in before
    with (out / "damage.jsonl").open("a") as file:
        file.write('{"variant": "window", "tri')  # what a kill within a write leaves
    again = run_needle(model, tokenizer, out=out, **options)
    assert again["damage"] == whole["damage"]
    assert rows_of(out) == rows_of(tmp_path / "whole")
    assert json.loads((out / "summary.json").read_text())["damage"] == whole["damage"]


def test_finished_it_reads_nothing_and_a_later_variant_hears_stock_again(model, tokenizer, tmp_path, monkeypatch):
    run_needle(model, tokenizer, out=tmp_path / "run", **SETTINGS)
    forward = type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda *args, **kwargs: pytest.fail("the model ran again"))
    run_needle(model, tokenizer, out=tmp_path / "run", **SETTINGS)
    monkeypatch.setattr(type(model), "forward", forward)
    later = run_needle(model, tokenizer, variants=[WINDOW], out=tmp_path / "run", **SETTINGS)
    assert later["damage"] == run_needle(model, tokenizer, variants=[WINDOW], **SETTINGS)["damage"]


def test_without_stock_there_is_perplexity_alone_until_stock_is_there(model, tokenizer, tmp_path):
    alone = run_needle(model, tokenizer, variants=[WINDOW], stock=False, out=tmp_path, **SETTINGS)["damage"]
    assert [part["kl"] for part in alone["window"]] == [None, None]
    both = run_needle(model, tokenizer, variants=[WINDOW], out=tmp_path, **SETTINGS)["damage"]
    assert [part["perplexity"] for part in both["window"]] == [part["perplexity"] for part in alone["window"]]
    assert all(part["kl"] > 0 and part["ratio"] > 0 for part in both["window"])


def test_memory_that_ends_leaves_the_bins_that_were_heard(model, tokenizer, tmp_path, monkeypatch):
    forward = type(model).forward

    def small(self, *args, position_ids, **kwargs):
        if position_ids.max() > 250:
            raise torch.OutOfMemoryError("no memory left")
        return forward(self, *args, position_ids=position_ids, **kwargs)

    monkeypatch.setattr(type(model), "forward", small)
    options = {"variants": [WINDOW], "out": tmp_path, **SETTINGS}
    found = run_needle(model, tokenizer, **options)["damage"]
    assert {name: [part["stop"] for part in parts] for name, parts in found.items()} == {
        "stock": [200],
        "window": [200],
    }
    monkeypatch.setattr(type(model), "forward", lambda *args, **kwargs: pytest.fail("the model ran again"))
    assert run_needle(model, tokenizer, **options)["damage"] == found


def test_what_is_predicted_is_text_and_neither_template_nor_needle(tokenizer, make_grid, monkeypatch):
    monkeypatch.setattr(module, "TOKENS", 10**6)
    grid = make_grid(tokenizer, lengths=(200, 400))
    probes = grid.probes(0)
    bins = draw_bins(probes, grid, vocabulary=len(tokenizer))
    places = {place for one in bins for place in one.places}
    needles = {
        place
        for probe in probes
        if probe.needle_at is not None
        for place in range(probe.needle_at, probe.needle_at + len(probe.needle_ids))
    }
    spaces = [range(len(grid.prompt.head), probes[3].at), range(200, probes[-1].at)]
    assert places == {place for space in spaces for place in space} - needles
    assert all(one.start <= place < one.stop for one in bins for place in one.places)


def test_memory_bounds_the_sample(tokenizer, make_grid, monkeypatch):
    grid = make_grid(tokenizer, lengths=(200, 400))
    monkeypatch.setattr(module, "MEMORY", 4 * 1000 * 20)
    assert [len(one.places) for one in draw_bins(grid.probes(0), grid, vocabulary=1000)] == [10, 10]


def test_edges_never_more_than_double():
    assert edges([1024, 65536])[:3] == [0, 1024, 2048]
    for lengths in ([512], [200, 400], [1024, 12288], [3000, 100_000], [1, 2, 3]):
        found = edges(lengths)
        assert set(lengths) <= set(found)
        assert found == sorted(set(found))
        assert all(b <= 2 * a for a, b in zip(found[1:], found[2:])) or found[1] < 512


def test_a_listener_takes_what_it_is_given_in_any_pieces():
    torch.manual_seed(0)
    ids, places = torch.randint(7, (50,)).tolist(), [1, 2, 9, 33, 34, 49]
    logits, stock = torch.randn(50, 7), torch.randn(len(places), 7)

    def listen(chunk):
        one = Listener(ids, places, reference=stock, keep=True)
        for start in range(0, 50, chunk):
            wanted = one.wanted(start, min(chunk, 50 - start))
            if wanted:
                one.hear(logits[start : start + chunk][wanted])
        return one

    whole = listen(50)
    expected = torch.nn.functional.cross_entropy(
        logits[[place - 1 for place in places]].double(),
        torch.tensor([ids[place] for place in places]),
        reduction="none",
    )
    assert whole.nll == pytest.approx(expected.tolist())
    assert torch.equal(whole.kept, logits[[place - 1 for place in places]])
    for chunk in (1, 7, 33):
        assert listen(chunk).nll == pytest.approx(whole.nll)
        assert listen(chunk).kl == pytest.approx(whole.kl)


def test_intervals_hold_the_mean_of_all_tokens_as_often_as_they_say():
    """Many samples of one known population: the interval holds the true mean about 95 times in 100."""
    torch.manual_seed(0)
    population = torch.distributions.Gamma(1.5, 0.6).sample((4000,))
    truth, held = math.exp(population.mean()), 0
    for _ in range(200):
        values = population[torch.randperm(4000)[:200]].tolist()
        row = {"variant": "stock", "start": 0, "stop": 1, "nll": values, "kl": None, "same": None, "places": []}
        (found,) = summarise_damage([row], variants=["stock"])["stock"]
        held += found["perplexity_low"] <= truth <= found["perplexity_high"]
    assert 180 <= held <= 199


def test_figures_are_worked_out_from_the_rows():
    base = {"start": 0, "stop": 1024, "places": [1, 2], "kl": None, "same": None}
    rows = [
        {"variant": "stock", "nll": [1.0, 2.0], **base},
        {"variant": "w", **base, "nll": [1.5, 2.5], "kl": [0.1, 0.3], "same": [1, 0]},
    ]
    found = summarise_damage(rows, variants=["stock", "w"])
    assert found["stock"][0]["perplexity"] == pytest.approx(math.exp(1.5))
    (part,) = found["w"]
    assert (part["kl"], part["same"], part["tokens"]) == (pytest.approx(0.2), 0.5, 2)
    assert part["ratio"] == pytest.approx(math.exp(0.5))
    assert part["kl_low"] <= part["kl"] <= part["kl_high"]


def test_a_model_that_breaks_is_said_to_be_broken():
    base = {"start": 0, "stop": 1024, "places": [1, 2], "same": [0, 0]}
    rows = [
        {"variant": "stock", "nll": [1.0, 2.0], "kl": None, **base},
        {"variant": "broken", "nll": [1.0, None], "kl": [0.5, None], **base},
        {"variant": "far", "nll": [900.0, 900.0], "kl": [800.0, 800.0], **base},
    ]
    found = summarise_damage(rows, variants=["stock", "broken", "far"])
    assert [found["broken"][0][key] for key in ("perplexity", "kl", "ratio", "kl_low")] == [None] * 4
    assert [found["far"][0][key] for key in ("perplexity", "kl", "ratio")] == [None, 800.0, None]
    assert damage_lines(found)[1:] == ["broken: perplexity not finite to 1K", "far: perplexity not finite to 1K"]
    json.dumps(found, allow_nan=False)
