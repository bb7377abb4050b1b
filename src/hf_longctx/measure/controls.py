"""Negative controls: questions without a right answer, which tell what a score is worth.

Each is a scored question with one thing changed, scored against the very value that the scored question expects:

- `no-needle`: the fact is not in the text. Hits come from guessing, from what the model knew before, or from a scoring
  that is too lenient.
- `wrong-key`: the text is the same, and the question is for another of its keys. Hits come from a model that says one
  value whatever is asked: the rate is the part of the score that does not depend on the question.

Both must be about 0. Where one is shown not to be, the score cannot be trusted; where more than one in twenty is a
hit, and they are too few to show anything, that is undecided. Some texts hold no other key to ask for (`lone`);
there the wrong key is one that was never planted. A model that names the value all the same may still find what it is
asked for: its only sensible answer to any key is that value. So these take no trust away; they are told apart, and
`caveat` says beside a verdict that shows a length to work what they leave open: that the key was read. A task with
several keys tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .wilson import wilson

NO_NEEDLE, WRONG_KEY = "no-needle", "wrong-key"
CONTROLS = (NO_NEEDLE, WRONG_KEY)
"""The controls by name."""
LONE = "absent-key"
"""Under which a summary counts wrong keys that the text does not hold."""

LIMIT = 0.05
"""Share of unanswerable questions a model may seem to answer before its score is no longer believed."""

_ANSWERED = {
    NO_NEEDLE: 'questions about a needle that was never there were "answered"',
    WRONG_KEY: "questions for another key were given this key's value",
    LONE: "questions for a key that was never there were given the value of one that was, so the score tells that a "
    "value is found, not that the key asked for is read",
}
_MEANS = {
    NO_NEEDLE: "it names values that were never planted",
    WRONG_KEY: "it names a planted value whatever is asked",
}


def kind_of(control: str | None, task: str = "") -> str:
    """What a row's `kind` is: the task's name, or the control before it; rows of needle runs name no task.

    >>> [kind_of(control, "passkey") for control in (None, *CONTROLS)], kind_of("wrong-key")
    (['passkey', 'control passkey', 'control-wrong-key passkey'], 'control-wrong-key')
    """
    # The control without a needle was the only one once, and its rows say no more than `control`.
    word = {None: "", NO_NEEDLE: "control", WRONG_KEY: "control-wrong-key"}[control]
    return f"{word} {task}".strip()


def control_of(row: Mapping[str, Any]) -> str | None:
    """Which control a row is, or None for one that is scored.

    >>> control_of({"kind": "control passkey"}), control_of({"kind": "control-wrong-key"}), control_of({"kind": "vt"})
    ('no-needle', 'wrong-key', None)
    """
    word = str(row.get("kind", "")).partition(" ")[0]
    return {kind_of(name): name for name in CONTROLS}.get(word)


def is_control(row: Mapping[str, Any]) -> bool:
    """Whether a row is a control.

    >>> is_control({"kind": "control niah_single_1"}), is_control({"kind": "needle"})
    (True, False)
    """
    return control_of(row) is not None


def grade(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Whether the controls leave the score believable.

    Args:
        rows: Rows of one variant; all but the scored ones of a control are passed over. Any score above 0 is a hit.

    Returns:
        ``{"trusted", "failed", "note", "no-needle", "wrong-key", "absent-key"}``: each control has ``n``, ``hits``,
        ``low`` and ``high`` (95% Wilson). ``failed`` names those whose lower bound is above `LIMIT`; ``trusted`` is
        False where there are any, None if the hits of one are more than `LIMIT` all the same, or no control was
        scored, else True. ``absent-key`` holds the wrong
        keys that no text holds, which are in none of these. A run of an earlier version has no wrong key.

    Examples:
        >>> grade([{"kind": "control", "outcome": "hit"}] * 3)["note"]
        '3 of 3 questions about a needle that was never there were "answered": its score cannot be trusted'
        >>> found = grade([{"kind": "control", "outcome": "miss"}] * 20)
        >>> found["trusted"], found["note"]
        (True, '0 of 20 questions about a needle that was never there were "answered" (at most 16% at 95%)')
        >>> found = grade([{"kind": "control", "outcome": one} for one in ("hit", *["miss"] * 9)])
        >>> print(found["trusted"], found["note"])
        None 1 of 10 questions about a needle that was never there were "answered": too few to tell what that means
        >>> found = grade([{"kind": "control-wrong-key vt", "outcome": "miss", "score": 0.2}] * 3)
        >>> found["trusted"], found["wrong-key"]["hits"], found["no-needle"]["n"]
        (False, 3, 0)
    """
    scored: dict[str, list[bool]] = {name: [] for name in (*CONTROLS, LONE)}
    for row in rows:
        name = control_of(row)
        if name is not None and row["outcome"] != "invalid":
            lone = name == WRONG_KEY and row.get("lone")
            scored[LONE if lone else name].append(row["outcome"] == "hit" or (row.get("score") or 0.0) > 0)
    found: dict[str, Any] = {}
    for name, hits in scored.items():
        low, high = wilson(sum(hits), len(hits))
        found[name] = {"n": len(hits), "hits": sum(hits), "low": low, "high": high}
    asked = [name for name in scored if found[name]["n"]]
    failed = [name for name in asked if name != LONE and found[name]["low"] > LIMIT]
    if not any(found[name]["n"] for name in CONTROLS):
        return {"trusted": None, "failed": [], "note": "no control was scored", **found}
    asked = [name for name in asked if name != LONE or found[LONE]["hits"]]
    counts = {name: f"{found[name]['hits']} of {found[name]['n']} {_ANSWERED[name]}" for name in asked}
    if failed:
        note = f"{' and '.join(counts[name] for name in failed)}: its score cannot be trusted"
        return {"trusted": False, "failed": failed, "note": note, **found}
    open_ = [name for name in CONTROLS if found[name]["hits"] > LIMIT * found[name]["n"]]
    if open_:
        note = f"{' and '.join(counts[name] for name in open_)}: too few to tell what that means"
        return {"trusted": None, "failed": [], "note": note, **found}
    for name in CONTROLS:
        if name in counts:
            counts[name] += f" (at most {found[name]['high']:.0%} at 95%)"
    return {"trusted": True, "failed": [], "note": "; ".join(counts.values()), **found}


def failed(control: Mapping[str, Any]) -> list[str]:
    """The controls that take the trust away.

    Args:
        control: from `grade`; what an earlier version wrote failed in the only control there was.

    >>> failed(grade([{"kind": "control-wrong-key", "outcome": "hit"}] * 3)), failed({"trusted": False, "hits": 3})
    (['wrong-key'], ['no-needle'])
    """
    if control.get("trusted") is not False:
        return []
    return list(control.get("failed") or [NO_NEEDLE])


def meaning(names: Sequence[str]) -> str:
    """What failed controls say of a model.

    >>> meaning(["wrong-key"])
    'it names a planted value whatever is asked'
    """
    return " and ".join(_MEANS[name] for name in names)


def caveat(control: Mapping[str, Any]) -> str:
    """What a score that is not distrusted still does not show, or nothing.

    Args:
        control: from `grade`.

    >>> caveat(grade([{"kind": "control", "outcome": one} for one in ("hit", "miss", "miss", "miss")]))
    '1 of 4 questions about a needle that was never there were "answered": too few to tell what that means'
    >>> absent = {"kind": "control-wrong-key passkey", "lone": True, "outcome": "hit"}
    >>> caveat(grade([absent, {"kind": "control passkey", "outcome": "miss"}]))
    'no text held another key, so which one was asked could not matter'
    >>> caveat(grade([absent, {"kind": "control-wrong-key vt", "outcome": "miss"}]))
    ''
    """
    if control.get("trusted") is None and any(control.get(name, {"hits": 0})["hits"] for name in CONTROLS):
        return str(control["note"])
    if control.get("trusted") is not True or control.get(WRONG_KEY, {"n": 0})["n"]:
        return ""
    # Whoever never reads the key names the value each time: where none was named, the key was read.
    blind = control.get(LONE, {"hits": 0})["hits"]
    return "no text held another key, so which one was asked could not matter" if blind else ""


def counts(control: Mapping[str, Any]) -> str:
    """Both controls as hits of n, for a table.

    >>> counts(grade([{"kind": "control", "outcome": "miss"}] * 3))
    'no-needle 0/3, wrong-key not asked'
    """
    parts = []
    for name in (*CONTROLS, LONE):
        one = control.get(name, {"n": 0})
        if name == LONE and not one["n"]:
            continue
        parts.append(f"{name} {one['hits']}/{one['n']}" if one["n"] else f"{name} not asked")
    return ", ".join(parts)
