"""Sizes of the published definitions, counted in the prompts themselves."""

import re
from collections import Counter

import pytest

from hf_longctx.measure.haystack import FILLER
from hf_longctx.measure.overlap import content_words, literal_overlap
from hf_longctx.measure.tasks import RULER, find
from hf_longctx.measure.tasks.latent_fact import FACTS
from hf_longctx.measure.tasks.scoring import score
from hf_longctx.measure.word_tokenizer import WordTokenizer

NIAH = {  # keys in the text, values of a key, values asked for, form of a value
    "niah_single_1": (1, 1, 1, r"\d{7}"),
    "niah_single_2": (1, 1, 1, r"\d{7}"),
    "niah_single_3": (1, 1, 1, r"[0-9a-f-]{36}"),
    "niah_multikey_1": (4, 1, 1, r"\d{7}"),
    "niah_multikey_2": (None, 1, 1, r"\d{7}"),
    "niah_multikey_3": (None, 1, 1, r"[0-9a-f-]{36}"),
    "niah_multivalue": (1, 4, 4, r"\d{7}"),
    "niah_multiquery": (4, 1, 4, r"\d{7}"),
}
BUDGETS = {"variable_tracking": 30, "common_words": 120, "frequent_words": 50, "qa_1": 32, "qa_2": 32}


def text(name, length=3000, seed=0, **more):
    tokenizer = WordTokenizer()
    prompt = find(name)(tokenizer, length, seed, **more)
    return prompt, tokenizer.decode(prompt.ids)


def test_ruler_is_thirteen_with_its_budgets_and_rules():
    assert set(RULER) == set(NIAH) | set(BUDGETS)
    for name in RULER:
        assert find(name).budget == BUDGETS.get(name, 128)
        assert find(name).rule == ("any" if name.startswith("qa") else "all")


@pytest.mark.parametrize("name", NIAH)
def test_keys_and_values(name):
    keys, values, asked, form = NIAH[name]
    prompt, said = text(name)
    planted = re.findall(r"One of the secret \w+ of (\S+) is (\S+)\.", said)
    owners = Counter(owner for owner, _ in planted)
    assert set(owners.values()) == {values}
    assert len(owners) == keys if keys else len(owners) > 50
    assert len({value for _, value in planted}) == len(planted)
    assert len(prompt.expected) == len(prompt.needles) == asked
    assert all(re.fullmatch(form, value) for _, value in planted)
    assert set(prompt.expected) <= {value for _, value in planted}
    filler = said.count(FILLER[0])
    assert filler > 20 if name == "niah_single_1" else not filler


def test_a_chain_of_four_hops_in_order_with_one_example():
    prompt, said = text("variable_tracking", depth=0.2)
    example, asked = said.split("Now another text.")
    value = re.search(r"have the value (\d{5})\?", asked)[1]
    statements = re.findall(r"VAR (\w{5}) = (?:VAR )?(\w{5})\.", asked)
    assert [name for name, _ in statements] == list(prompt.expected)
    assert [source for _, source in statements] == [value, *prompt.expected[:-1]]
    assert len(re.findall(r"VAR \w{5} = ", example)) == 5
    assert not any(name in example for name in prompt.expected)


@pytest.mark.parametrize(("length", "often", "seldom", "in_example"), [(3000, 6, 1, (3, 1)), (5000, 30, 3, (10, 3))])
def test_common_words_come_as_often_as_published(length, often, seldom, in_example):
    prompt, said = text("common_words", length)
    example, asked = (Counter(re.findall(r"\d+\. (\w+)", part.split("Which 10")[0])) for part in said.split("another"))
    counts = sorted(asked.values(), reverse=True)
    assert counts[:10] == [often] * 10
    assert set(counts[10:]) == {seldom}
    assert {word for word, _ in asked.most_common(10)} == set(prompt.expected)
    assert sorted(set(example.values())) == sorted(in_example)
    assert not set(example) & set(asked)


def test_frequent_words_follow_the_zeta_distribution():
    prompt, said = text("frequent_words", 6000)
    body = said.split("mean nothing.")[1].split("Which three")[0]
    counts = Counter(re.findall(r"\.\.\.|[a-z]{6}", body))
    ranked = counts.most_common()
    assert ranked[0][0] == "..."
    assert [word for word, _ in ranked[1:4]] == list(prompt.expected)
    assert len({count for _, count in ranked[:5]}) == 5
    for rank in (2, 3, 4):
        assert counts[prompt.expected[rank - 2]] == pytest.approx(ranked[0][1] / rank**2, abs=1)


def test_latent_facts_share_no_word_with_their_question():
    for fact, question, telling in FACTS:
        assert telling == telling.lower()
        assert literal_overlap(fact, f"{question} Answer with the name alone.") == 0.0, (fact, question)
        assert content_words(question), question
    assert len({fact for fact, *_ in FACTS}) == len(FACTS) == len({telling for *_, telling in FACTS})


def test_a_literal_needle_has_a_high_overlap():
    assert text("niah_single_2")[0].overlap == 1.0
    assert text("passkey")[0].unique_share < 0.2 < 0.9 < text("latent_fact")[0].unique_share


def test_hops_are_scattered_and_lead_to_the_answer():
    orders = set()
    for seed in range(6):
        prompt, said = text("multihop", 1200, seed)
        links = dict(re.findall(r"(\w+) gave the parcel to (\w+)\.", said))
        assert len(links) == 9
        holder = re.match(r"(\w+) had", prompt.question)[1]
        for _ in range(3):
            holder = links[holder]
        assert (holder,) == prompt.expected
        assert holder not in links
        orders.add(tuple(sorted(range(3), key=lambda index: prompt.needles[index])))  # noqa: B023
    assert len(orders) > 1


def test_key_value_is_one_json_object():
    import json

    prompt, said = text("key_value", depth=0.5)
    pairs = json.loads(said[said.index("{") : said.index("}") + 1])
    key = re.search(r'"(.+)"', prompt.question)[1]
    assert pairs[key] == prompt.expected[0]
    assert len(pairs) > 50


@pytest.mark.parametrize(
    ("answer", "expected", "rule", "points"),
    [
        ("12, 34", ["12", "34"], "all", 1.0),
        ("12", ["12", "34", "56", "78"], "all", 0.25),
        ("the USA", ["United States", "usa"], "any", 1.0),  # one alias is enough, and counts in full
        ("none", ["a b", "c"], "any", 0.0),
        ("", ["x"], "all", 0.0),
    ],
)
def test_scoring_rules(answer, expected, rule, points):
    assert score(answer, expected, rule) == points


def test_scoring_refuses_what_it_cannot_score():
    with pytest.raises(ValueError, match="rule='most'"):
        score("a", ["a"], "most")
    with pytest.raises(ValueError, match="expected is empty"):
        score("a", [], "all")
