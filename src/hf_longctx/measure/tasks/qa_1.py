"""RULER's `qa_1`: a question about one paragraph, the others of the file around it.

>>> import json, pathlib, tempfile
>>> from hf_longctx.measure.tasks import find
>>> from hf_longctx.measure.word_tokenizer import WordTokenizer
>>> with tempfile.TemporaryDirectory() as folder:
...     file = pathlib.Path(folder) / "squad.json"
...     _ = file.write_text(json.dumps(find("qa_1").sample()))
...     prompt = find("qa_1")(WordTokenizer(), length=256, seed=0, files=file)
>>> print(prompt.question, "->", *prompt.expected)
Question: What does Giselle mend? -> pillow
"""

from __future__ import annotations

from typing import Any

from .base import task
from .draft import Draft, Material
from .qa import BUDGET, about_documents, sample_trades

_FORM = "a JSON file in SQuAD's form: data, paragraphs, context, qas, question, answers, text"


def _sample() -> Any:
    people, others = sample_trades()
    paragraphs: list[dict[str, Any]] = [{"context": text, "qas": []} for text in others]
    for name, text, thing in people:
        asked = {"question": f"What does {name} mend?", "answers": [{"text": thing}]}
        paragraphs.append({"context": text, "qas": [asked]})
    return {"data": [{"paragraphs": paragraphs}]}


@task(
    rule="any",
    budget=BUDGET,
    source="RULER (arXiv 2404.06654), question answering over SQuAD",
    lone=True,
    files=_FORM,
    sample=_sample,
)
def qa_1(draft: Draft) -> Material:
    """A question about one paragraph of a file in SQuAD's form, among its other paragraphs."""
    return about_documents(draft, _read, _FORM)


def _read(parsed: Any) -> tuple[list[str], list[tuple[str, list[str], list[str]]]]:
    paragraphs = [paragraph for article in parsed["data"] for paragraph in article["paragraphs"]]
    questions = [
        (one["question"], [answer["text"] for answer in one["answers"]], [paragraph["context"]])
        for paragraph in paragraphs
        for one in paragraph["qas"]
        if not one.get("is_impossible")
    ]
    return [paragraph["context"] for paragraph in paragraphs], questions
