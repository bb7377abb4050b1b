"""Needles in a haystack as RULER lays them out: keys with values, some asked for, some in the way."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from hf_longctx.measure.needles import draw_value

from .draft import Context, Draft, Material
from .draws import distinct, keys
from .fill import hide, stack

SOURCE = "RULER (arXiv 2404.06654), section 3 and appendix B"
BUDGET = 128

_KINDS = {"digits": "number", "uuid": "code"}
"""What a value is called."""


def needles(
    draft: Draft,
    *,
    haystack: str | None = None,
    needle_haystack: bool = False,
    key: str = "words",
    value: str = "digits",
    keys_: int = 1,
    values: int = 1,
    asked: int = 1,
) -> Material:
    """Draw keys and values, hide them, and ask for the values of the first `asked` keys.

    Args:
        draft: what to draw from.
        haystack: one that the definition names, or None for natural text.
        needle_haystack: whether the text consists of other needles.
        key: `words` or `uuid`.
        value: `digits` or `uuid`.
        keys_: how many keys stand in the text.
        values: how many values each key has.
        asked: how many keys are asked for.
    """
    rng, kind = draft.rng, _KINDS[value]
    names = draft.unseen(keys(rng) if key == "words" else distinct(lambda: draw_value("uuid", rng)), haystack)
    drawn = draft.unseen(distinct(lambda: draw_value(value, rng)), haystack)
    owners = list(itertools.islice(names, keys_))
    facts = [(owner, next(drawn)) for owner in owners for _ in range(values)]
    wanted = asked * values
    depths = draft.depths(len(facts))
    strangers = list(itertools.islice(names, asked))
    sentences = [_sentence(owner, found, kind) for owner, found in facts]
    first, count = (0, wanted) if draft.planted else (wanted, 0)
    planted, where = sentences[first:], depths[first:]
    taken = {*owners, *strangers, *(found for _, found in facts)}

    def fill(room: int) -> Context:
        if not needle_haystack:
            return hide(draft.codec, draft.sentences(haystack), planted, where, room, asked=count)
        others = (_sentence(*one, kind) for one in _others(draft.seed, key, value, kind, without=taken))
        return stack(draft.codec, others, list(zip(planted, where))[:count], room)

    named = owners[:asked]
    if draft.wrong_key and needle_haystack:
        named = [next(_others(draft.seed, key, value, kind, without=taken))[0]]
    elif draft.wrong_key:
        named = owners[-asked:] if keys_ > asked else strangers
    listed = named[0] if asked == 1 else f"{', '.join(named[:-1])} and {named[-1]}"
    several = wanted > 1
    verb, noun = ("are", f"{kind}s") if several else ("is", kind)
    return Material(
        instruction=f"The text below holds some secret {kind}s. Remember them; one question follows.",
        question=f"What {verb} the secret {noun} of {listed}{', all of them' if several else ''}?",
        prefix=f"In the text, the secret {noun} of {listed} {verb}",
        expected=tuple(found for _, found in facts[:wanted]),
        facts=tuple(sentences[:wanted]),
        fill=fill,
    )


def _sentence(owner: str, found: str, kind: str) -> str:
    return f"One of the secret {kind}s of {owner} is {found}."


def _others(seed: str, key: str, value: str, kind: str, *, without: set[str]) -> Iterator[tuple[str, str]]:
    """Keys and values of needles that nobody asks for."""
    rng = random.Random(f"{seed}/others")
    names = keys(rng) if key == "words" else distinct(lambda: draw_value("uuid", rng))
    drawn = distinct(lambda: draw_value(value, rng))
    return ((owner, found) for owner, found in zip(names, drawn) if not {owner, found} & without)
