"""RULER's variable tracking (`vt`): a chain of assignments scattered over the text.

>>> from hf_longctx.measure.tasks import find
>>> from hf_longctx.measure.word_tokenizer import WordTokenizer
>>> prompt = find("variable_tracking")(WordTokenizer(), length=600, seed=0)
>>> print(prompt.question, "->", *prompt.expected)
Which variables of the text have the value 74675? Name all 5. -> MWGEZ CHJVJ NGAED ZFIPW SNNKS
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from .base import task
from .draft import Context, Draft, Material
from .draws import distinct, letters
from .fill import hide

_NAMES = 5
_EXAMPLE_SENTENCES = 10


@task(rule="all", budget=30, source="RULER (arXiv 2404.06654), variable tracking: 1 chain, 4 hops", lone=True)
def variable_tracking(draft: Draft) -> Material:
    """Every variable that a chain of four assignments gives one value, in repeated filler; one example first."""
    rng = draft.rng
    names = draft.unseen(letters(rng, 5, upper=True), "filler")
    values = distinct(lambda: str(rng.randrange(10_000, 100_000)))
    (example_value, example), (value, chain) = ((next(values), list(itertools.islice(names, _NAMES))) for _ in "ab")
    # A chain is read from its beginning: sorted depths keep it in order, and the first is the one that was asked for.
    first, *rest = draft.depths(_NAMES)
    depths = (
        [first, *(first + (1 - first) * depth for depth in sorted(rest))]
        if draft.depth is not None
        else sorted([first, *rest])
    )
    facts = _statements(chain, value)
    other = next(values)
    asked = other if draft.wrong_key else value

    def fill(room: int) -> Context:
        planted = facts if draft.planted else []
        return hide(draft.codec, draft.sentences("filler"), planted, depths[: len(planted)], room, asked=len(planted))

    shown = list(itertools.islice(draft.sentences("filler"), _EXAMPLE_SENTENCES))
    for index, statement in enumerate(_statements(example, example_value)):
        shown.insert(3 * index, statement)
    return Material(
        instruction="Follow the assignments of variables that are hidden in a text.\n\n"
        f"{' '.join(shown)}\n\n{_question(example_value)}\n{_prefix(example_value)} {', '.join(example)}.\n\n"
        "Now another text.",
        question=_question(asked),
        prefix=_prefix(asked),
        expected=tuple(chain),
        facts=tuple(facts),
        fill=fill,
    )


def _statements(chain: Sequence[str], value: str) -> list[str]:
    return [f"VAR {name} = {source}." for name, source in zip(chain, [value, *(f"VAR {name}" for name in chain)])]


def _question(value: str) -> str:
    return f"Which variables of the text have the value {value}? Name all {_NAMES}."


def _prefix(value: str) -> str:
    return f"The {_NAMES} variables with the value {value} are"
