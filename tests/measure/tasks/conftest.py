"""Files for the tasks over a user's documents."""

import json

import pytest


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A name of a task to the file it reads, small but large enough for 2,000 tokens of the tests' tokenizer."""
    folder = tmp_path_factory.mktemp("files")
    paragraphs = [
        {
            "context": f"Town {n} lies by a river. Its mayor is called Mayor{n}, and {n} boats are moored there.",
            "qas": [{"question": f"Who is mayor of town {n}?", "answers": [{"text": f"Mayor{n}"}, {"text": "he"}]}],
        }
        for n in range(300)
    ]
    questions = [
        {
            "question": f"Where does person {n} live?",
            "answer": f"Country{n}",
            "context": [
                [f"P{n}", [f"P{n} lives in T{n}."]],
                [f"T{n}", [f"T{n} is in Country{n}."]],
                [f"X{n}", ["No."]],
            ],
            "supporting_facts": [[f"P{n}", 0], [f"T{n}", 0], [f"T{n}", 0]],
        }
        for n in range(300)
    ]
    found = {"qa_1": folder / "squad.json", "qa_2": folder / "hotpot.json"}
    found["qa_1"].write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    found["qa_2"].write_text(json.dumps(questions))
    return found
