"""RULER's `qa_2`: a question that needs two documents, those of other questions around them.

>>> import json, pathlib, tempfile
>>> from hf_longctx.measure.tasks import find
>>> from hf_longctx.measure.word_tokenizer import WordTokenizer
>>> with tempfile.TemporaryDirectory() as folder:
...     file = pathlib.Path(folder) / "hotpot.json"
...     _ = file.write_text(json.dumps(find("qa_2").sample()))
...     prompt = find("qa_2")(WordTokenizer(), length=256, seed=0, files=file)
>>> print(prompt.question, "->", *prompt.expected, len(prompt.needles))
Question: What does the friend of Anselm mend? -> coat 2
"""

from __future__ import annotations

from typing import Any

from .base import task
from .draft import Draft, Material
from .qa import BUDGET, about_documents, sample_trades

_FORM = "a JSON file in HotpotQA's form: question, answer, context, supporting_facts"


def _sample() -> Any:
    people, others = sample_trades()
    plain = [[f"Village news {number}", [text]] for number, text in enumerate(others)]
    found = []
    for index, (friend, text, thing) in enumerate(people):
        name = people[index - 1][0]
        context = [[f"The friend of {name}", [f"The friend of {name} is called {friend}."]], [friend, [text]]]
        found.append(
            {
                "question": f"What does the friend of {name} mend?",
                "answer": thing,
                "context": [*context, *plain[4 * index : 4 * index + 4]],
                "supporting_facts": [[title, 0] for title, _ in context],
            }
        )
    return found


@task(
    rule="any",
    budget=BUDGET,
    source="RULER (arXiv 2404.06654), question answering over HotpotQA",
    lone=True,
    files=_FORM,
    sample=_sample,
)
def qa_2(draft: Draft) -> Material:
    """A question that needs two documents of a file in HotpotQA's form, among those of its other questions."""
    return about_documents(draft, _read, _FORM)


def _read(parsed: Any) -> tuple[list[str], list[tuple[str, list[str], list[str]]]]:
    documents: list[str] = []
    questions = []
    for one in parsed:
        texts = {title: f"{title}\n{''.join(sentences)}" for title, sentences in one["context"]}
        documents += texts.values()
        titles = dict.fromkeys(title for title, _ in one["supporting_facts"])
        questions.append((one["question"], [one["answer"]], [texts[title] for title in titles]))
    return documents, questions
