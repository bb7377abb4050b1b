"""Scoring: the expected strings in the answer, case aside, all of them or any; RULER's substrings, or whole words."""

from __future__ import annotations

import re
from collections.abc import Sequence

RULES = ("all", "any")
"""`all`: the share of the expected strings that the answer holds; `any`: 1 if it holds one of them."""


_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def score(answer: str, expected: Sequence[str], rule: str, *, whole: bool = False) -> float:
    """Score an answer (RULER, arXiv 2404.06654, `string_match_all` and `string_match_part`).

    An expected string counts wherever it stands in the answer, case aside: as RULER has it also within a longer word
    or number, unless `whole` asks that it stands alone. Then `51,815` is read as `51815`. Aliases are alternatives:
    under `any` one is enough, and the score is never divided by their number.

    Args:
        answer: what the model said, as decoded.
        expected: at least one string.
        rule: one of `RULES`.
        whole: whether letters or digits right beside an expected string undo it.

    Returns:
        A score from 0 to 1.

    Raises:
        ValueError: for an unknown rule, or nothing expected.

    >>> score("It is 12 and 34.", ["12", "34", "56", "78"], "all"), score("in Paris", ["Rome", "paris"], "any")
    (0.5, 1.0)
    >>> score("151815", ["51815"], "all"), score("151815", ["51815"], "all", whole=True)
    (1.0, 0.0)
    """
    if rule not in RULES:
        raise ValueError(f"rule={rule!r} is not a scoring rule: choose one of {', '.join(RULES)}")
    if not expected:
        raise ValueError("expected is empty: a task needs at least one right answer")
    said = answer.casefold()
    if whole:
        said = _THOUSANDS.sub("", said)
        found = sum(re.search(rf"(?<!\w){re.escape(one.casefold())}(?!\w)", said) is not None for one in expected)
    else:
        found = sum(one.casefold() in said for one in expected)
    return float(found > 0) if rule == "any" else found / len(expected)
