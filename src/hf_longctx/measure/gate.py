"""A gate for CI: does a run reach what it has to, variant by variant? What is undecided or uncontrolled does not."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .controls import CONTROLS
from .defaults import TASK
from .heatmap import length_label
from .suite import summaries
from .wilson import wilson

Entry = Mapping[str, Any]
"""A variant in a summary."""


@dataclass(frozen=True)
class Limit:
    """What has to be reached.

    Attributes:
        variant: whose; None is every variant that has no limit of its own for that measure.
        measure: one of `MEASURES`.
        value: tokens for lengths, else a share from 0 to 1.
    """

    variant: str | None
    measure: str
    value: float


@dataclass(frozen=True)
class Measure:
    """Something that a limit can be set for.

    Attributes:
        kinds: of the parts that have it.
        read: text to value.
        has: whether a variant's entry has it.
        misses: None if the entry reaches the value, else the rest of a sentence that begins with the variant's name.
    """

    kinds: frozenset[str]
    read: Callable[[str], float]
    has: Callable[[Entry], bool]
    misses: Callable[[Entry, float], str | None]


def parse(texts: Iterable[str]) -> tuple[Limit, ...]:
    """Read limits as `--fail-under` takes them.

    Args:
        texts: `effective=8k`, `recall=0.8`, `yarn2:effective=8k`.

    Returns:
        The limits.

    Raises:
        ValueError: no such measure, with the nearest, or no value of it, or a limit given twice.

    >>> parse(["effective=8k", "yarn2:recall=0.8"])
    (Limit(variant=None, measure='effective', value=8192), Limit(variant='yarn2', measure='recall', value=0.8))
    """
    limits: list[Limit] = []
    for text in texts:
        what, equals, value = (part.strip() for part in text.partition("="))
        variant, colon, measure = what.rpartition(":")
        if not equals or not value or (colon and not variant):
            raise ValueError(f"--fail-under {text!r}: write effective=8k, recall=0.8 or VARIANT:effective=8k")
        if measure not in MEASURES:
            near = difflib.get_close_matches(measure, MEASURES, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"--fail-under {text!r}: {hint}what can be asked for is {', '.join(MEASURES)}")
        try:
            limit = Limit(variant or None, measure, MEASURES[measure].read(value))
        except ValueError as error:
            raise ValueError(f"--fail-under {text!r}: {error}") from None
        if any((one.variant, one.measure) == (limit.variant, limit.measure) for one in limits):
            raise ValueError(f"--fail-under {text!r}: {what} is given twice: keep one")
        limits.append(limit)
    return tuple(limits)


def check(limits: Iterable[Limit], variants: Collection[str], kinds: Collection[str]) -> None:
    """Refuse limits for what a run will not have, before it has begun.

    Args:
        limits: from `parse`.
        variants: the names of those that will run.
        kinds: of the run's parts, as a suite names them.

    Raises:
        ValueError: a variant that does not exist, with the nearest name, or a measure that no part has.
    """
    _check_names(limits := list(limits), variants)
    for limit in limits:
        if not MEASURES[limit.measure].kinds & set(kinds):
            has = " or ".join(sorted(MEASURES[limit.measure].kinds))
            raise ValueError(f"--fail-under asks for {limit.measure}, which only a part of the kind {has} measures")


def _check_names(limits: Iterable[Limit], variants: Collection[str]) -> None:
    for limit in limits:
        if limit.variant is not None and limit.variant not in variants:
            near = difflib.get_close_matches(limit.variant, variants, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"--fail-under names the variant {limit.variant!r}, the run has {_all(variants)}.{hint}")


def misses(run: Path | Mapping[str, Any], limits: Sequence[Limit]) -> list[str]:
    """What a run does not reach.

    Where a suite has parts that search for the effective length, these decide on it; else those that hid needles do.

    Args:
        run: the folder of a run or of a suite, or the summary of a run.
        limits: from `parse`.

    Returns:
        A sentence for each variant and limit that is missed; none where all is well.

    Raises:
        ValueError: no run, a variant that is not in it, or a measure that none of its parts has.
    """
    if not limits:
        return []
    if isinstance(run, Path):
        said, parts = f"run={str(run)!r}", summaries(run)
    else:
        kind = run["settings"].get("kind", "needle")
        said, parts = "the run", [{"name": "", "kind": kind, "model": run["model"], "summary": run}]
    if not parts:
        raise ValueError(
            f"{said} has no summary.json yet: let it begin, then ask again; a run of costs alone measures nothing "
            "that --fail-under knows"
        )
    _check_names(limits, [*dict.fromkeys(name for part in parts for name in part["summary"]["variants"])])
    own = {(limit.variant, limit.measure) for limit in limits}
    told = []
    for limit in limits:
        measure = MEASURES[limit.measure]
        asked = []
        for part, name, entry in _entries(parts, measure):
            if limit.variant == name or (limit.variant is None and (name, limit.measure) not in own):
                asked.append((part, name, entry))
        if not asked:
            whose = f" of {limit.variant!r}" if limit.variant else ""
            raise ValueError(f"{said} does not measure {limit.measure}{whose}: leave it out of --fail-under")
        for part, name, entry in asked:
            missed = _untrusted(entry) or measure.misses(entry, limit.value)
            if missed is not None:
                where = f"{part['name']}, {name}" if part["name"] else name
                told.append(f"{where}: {missed}")
    return told


def _entries(parts: Sequence[Mapping[str, Any]], measure: Measure) -> list[tuple[Mapping[str, Any], str, Entry]]:
    found = [
        (part, name, entry)
        for part in parts
        for name, entry in part["summary"]["variants"].items()
        if measure.has(entry)
    ]
    searched = {(part["model"], name) for part, name, _ in found if part["kind"] == "tasks"}
    return [one for one in found if one[0]["kind"] == "tasks" or (one[0]["model"], one[1]) not in searched]


def _untrusted(entry: Entry) -> str | None:
    """Why a score counts for nothing, whatever it is: what no control stands beside is not known to be good."""
    control = entry["control"]
    if control["trusted"] is None:
        more = (
            "let the run go on with more trials"
            if any(control.get(one, {"hits": 0})["hits"] for one in CONTROLS)
            else (f"let the run go on, or ask beside it a task that has controls, such as {TASK}")
        )
        return f"{control['note']}, so nothing tells what its score is worth: {more}"
    return None if control["trusted"] else control["note"]


def _effective(rule: str) -> Measure:
    def missed(entry: Entry, value: float) -> str | None:
        found, want = entry["effective"][rule], int(value)
        have = found["length"]
        if have is not None and have >= want:
            return None
        calls = {int(length): call for length, call in found["verdicts"].items()}
        shown = f"shown to work to {length_label(have)}" if have else "not shown to work at any length"
        head = f"effective length ({rule}) is {shown}, {length_label(want)} was asked for, {want - (have or 0)} more"
        if failed := [length for length, call in sorted(calls.items()) if call == "fail" and length <= want]:
            return f"{head}; it fails at {length_label(failed[0])}"
        open_ = [length for length, call in sorted(calls.items()) if call != "pass" and length > (have or 0)]
        if not open_ or open_[0] > want:
            return f"{head}; undecided, since no length from {length_label(want)} on has passed: ask longer ones"
        more = found.get("needed", {}).get(str(open_[0]))
        if not more and (why := found.get("unsettled", {}).get(str(open_[0]))):
            return f"{head}; undecided at {length_label(open_[0])}, which is no pass: {why}"
        hint = f" ({more} more straight hits would pass)" if more else ""
        return f"{head}; undecided at {length_label(open_[0])}{hint}, which is no pass: give more trials"

    return Measure(
        frozenset({"needle", "effective"}), _tokens, lambda entry: bool(entry["effective"].get(rule)), missed
    )


def _recall(*, low: bool) -> Measure:
    """Needles found, of all lengths and depths: the share, or the lower end of its interval."""

    def missed(entry: Entry, value: float) -> str | None:
        hits, n = sum(one["hits"] for one in entry["cells"]), sum(one["n"] for one in entry["cells"])
        if n == 0:
            return f"recall of {value:g} was asked for, and it is undecided: no needle could be asked for"
        bottom, top = wilson(hits, n)
        if (bottom if low else hits / n) >= value:
            return None
        head = f"recall is {hits / n:.3f} ({hits} of {n}, 95% interval {bottom:.3f} to {top:.3f}), {value:g}"
        if not low:
            return f"{head} was asked for, {value - hits / n:.3f} more"
        state = "undecided, which is no pass: give more trials" if top >= value else "fails"
        return f"{head} was asked for of its lower end, {value - bottom:.3f} more; {state}"

    return Measure(frozenset({"needle"}), _share, lambda entry: any("recall" in one for one in entry["cells"]), missed)


def _tokens(text: str) -> float:
    from hf_longctx.rope.text import read_length

    return read_length(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise ValueError(f"{text!r} is no share: write a number above 0 and at most 1, such as 0.8")
    return value


def _all(names: Collection[str]) -> str:
    return ", ".join(names) or "none"


MEASURES: Mapping[str, Measure] = {
    "effective": _effective("absolute"),
    "effective-own": _effective("own"),
    "recall": _recall(low=False),
    "recall-low": _recall(low=True),
}
"""What `--fail-under` may name: the effective length by RULER's bar or by the model's own short score, the share of
needles found, or the lower end of that share's 95% interval."""
