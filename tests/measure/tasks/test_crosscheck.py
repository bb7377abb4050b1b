"""What docs/crosscheck.md says of our prompts, counted in the prompts."""

import re
from collections import Counter
from pathlib import Path

from hf_longctx.measure.haystack import FILLER
from hf_longctx.measure.needles import ADJECTIVES, NOUNS
from hf_longctx.measure.tasks import find
from hf_longctx.measure.word_tokenizer import WordTokenizer

PAGE = Path(__file__).parents[3] / "docs" / "crosscheck.md"


def ours(title):
    """The column "ours" of the table under a heading."""
    section = PAGE.read_text(encoding="utf-8").split(f"## {title}")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")][2:]
    return {row[0].strip(): row[2].strip() for row in rows}


def rendered(name):
    tokenizer = WordTokenizer()
    prompt = find(name)(tokenizer, 4096, 0, style="base")
    return prompt, tokenizer.decode(prompt.ids)


def test_multikey_2():
    told = ours("niah_multikey_2")
    prompt, said = rendered("niah_multikey_2")
    context = said.split("one question follows.")[1].split("What is")[0]
    lines = [line for line in context.splitlines() if line.strip()]
    needles = [re.fullmatch(r"One of the secret numbers of (\S+) is (\d+)\.", line) for line in lines]
    assert all(needles)
    assert told["lines of the text that are needles"] == "all"
    owners, values = Counter(one[1] for one in needles), {one[2] for one in needles}
    asked = re.search(r"secret number of (\S+)\?", prompt.question)[1]
    assert int(told["needles in the text (one token a word, seed 0)"]) == len(needles) == len(owners) == len(values)
    assert int(told["times that the asked key stands in the text"]) == owners[asked]
    assert int(told["keys asked for"]) == len(re.findall(r"of (\S+)\?", prompt.question))
    assert int(told["values of the asked key"]) == len(prompt.expected)
    assert {len(value) for value in values} == {int(told["digits of a value"])}
    assert int(told["tokens to generate"]) == prompt.budget
    assert said.rstrip().endswith(prompt.prefix)
    text = PAGE.read_text(encoding="utf-8")
    assert f"{len(ADJECTIVES)} adjectives and\n  {len(NOUNS)} nouns" in text


def test_variable_tracking():
    told = ours("variable_tracking")
    prompt, said = rendered("variable_tracking")
    example, asked = said.split("Now another text.")
    value = re.search(r"have the value (\d+)\?", prompt.question)[1]
    links = re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", asked)
    assert int(told["chains"]) == sum(source.isdigit() for _, source in links)
    assert int(told["hops"]) == sum(not source.isdigit() for _, source in links)
    assert int(told["names to find"]) == len(prompt.expected) == len({name for name, _ in links})
    assert {len(name) for name in prompt.expected} == {int(told["letters of a name"])}
    assert len(value) == int(told["digits of the value"])
    shown = re.findall(r"VAR (\w+) = ", example)
    assert int(told["names in the example"]) == len(shown)
    assert {len(name) for name in shown} == {int(told["letters of a name in the example"])}
    assert int(told["examples before the question"]) == example.count("Which variables")
    assert int(told["different sentences of the noise"]) == len(FILLER) == sum(one in asked for one in FILLER)
    assert int(told["tokens to generate"]) == prompt.budget
    assert str(len(prompt.expected)) in prompt.prefix
    assert said.rstrip().endswith(prompt.prefix)


def test_scores_are_shares_with_case_aside():
    for name in ("niah_multikey_2", "variable_tracking"):
        prompt, _ = rendered(name)
        assert prompt.score(prompt.expected[0].lower()) == 1 / len(prompt.expected)
        assert "share of the" in ours(name)["score"]
    multikey, _ = rendered("niah_multikey_2")
    assert multikey.score(f"3{multikey.expected[0]}") == 1.0
    assert ours("niah_multikey_2")["a value within a longer number counts"] == "yes"
