"""What a run found, in words worked out from its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from hf_longctx.measure.controls import caveat, failed, meaning
from hf_longctx.measure.heatmap import length_label
from hf_longctx.measure.stats import verdict

_KEPT = 0.85
_NAMED = 4


def finding(summary: Mapping[str, Any]) -> str:
    """Say in one sentence how far the first variant sees and what the others do at its longest length.

    The first variant is ``stock`` if the run has it. "Keeps its recall" means that no length so far is
    shown to have fallen below 85% of the recall at the shortest: the sentence says with how many probes, and whether
    they prove the opposite is for the verdicts to say.

    Args:
        summary: A summary as in ``summary.json``; a run that has only begun will do.

    Returns:
        A sentence, first letter upper case, with a full stop.

    Examples:
        >>> def entry(claimed, *counts):
        ...     lengths = [{"length": tokens, "hits": hits, "n": 5} for tokens, hits in counts]
        ...     return {"claimed": claimed, "lengths": lengths, "cells": []}
        >>> stock = entry(8192, (4096, 5), (8192, 2), (12288, 0))
        >>> said = finding({"variants": {"stock": stock, "yarn2": entry(16384, (4096, 5), (12288, 3))}})
        >>> said.split(", then ")[0]
        'With 5 probes a length, stock keeps its recall to 4K of the 8K it claims'
        >>> said.split(", then ")[1]
        'finds 2 of 5 at 8K and none of 5 at 12K; at 12K yarn2 finds 3 of 5.'
    """
    scored = {name: lengths for name, entry in summary["variants"].items() if (lengths := _scored(entry))}
    if not scored:
        return "No needle has been scored yet."
    lead = "stock" if "stock" in scored else next(iter(scored))
    top = max(scored[lead])
    parts = [f"{_probes(scored)}, {_span(lead, summary['variants'][lead].get('claimed'), scored[lead])}"]
    parts += _others(summary["variants"], scored, lead, top)
    doubted = [name for name in scored if summary["variants"][name].get("control", {}).get("trusted") is False]
    if doubted:
        parts += [
            f"but of {name}, {meaning(failed(summary['variants'][name]['control']))}, so its score cannot be trusted"
            for name in doubted
        ]
    return "; ".join(parts) + "."


def effective_text(found: Mapping[str, Any]) -> str:
    """An effective length as a few words, with what an undecided one still needs.

    Args:
        found: One rule's part of `stats.effective`.

    Examples:
        >>> effective_text({"length": 1024, "verdicts": {"1024": "pass", "2048": "undecided"}, "needed": {"2048": 9}})
        '1K, +9 at 2K'
        >>> effective_text({"length": None, "verdicts": {"1024": "fail"}, "needed": {}})
        'below 1K'
    """
    length = found["length"]
    stop = next((key for key, call in found["verdicts"].items() if call != "pass"), None)
    if stop is None:
        return f"at least {length_label(length)}" if length else "not measured"
    if found["verdicts"][stop] == "fail":
        return length_label(length) if length else f"below {length_label(int(stop))}"
    extra = f", +{found['needed'][stop]} at {length_label(int(stop))}" if stop in found["needed"] else ""
    return (length_label(length) if length else "undecided") + extra


def unsettled_text(found: Mapping[str, Any]) -> list[str]:
    """Why lengths have neither passed nor failed, those of one reason together.

    Args:
        found: One rule's part of a summary.

    >>> unsettled_text({"unsettled": {"4096": "not asked: 2K fails", "8192": "not asked: 2K fails"}})
    ['4K, 8K not asked: 2K fails']
    """
    lengths: dict[str, list[str]] = {}
    for length, why in (found.get("unsettled") or {}).items():
        lengths.setdefault(why, []).append(length_label(int(length)))
    # "4K could not be asked", but "4K: the run stopped".
    return [f"{', '.join(names)}{'' if why.startswith(_JOINED) else ':'} {why}" for why, names in lengths.items()]


_JOINED = ("not ", "could ")


def verdict_line(name: str, entry: Mapping[str, Any], rule: str = "absolute") -> str:
    """Effective against claimed length of one variant in a sentence, with the interval.

    Args:
        name: of the variant.
        entry: its part of a summary, as `runs.recall` makes it.
        rule: one of its rules.

    Examples:
        >>> found = {"low": 2048, "high": 12288, "confidence": 0.95, "verdicts": {"2048": "pass", "12288": "fail"}}
        >>> verdict_line("stock", {"claimed": 8192, "effective": {"absolute": found}})
        'stock claims 8K; it is shown to work to 2K, 25% of the claim, and to fail at 12K (95% interval).'
        >>> found = {"low": None, "high": None, "verdicts": {"1024": "undecided"}, "needed": {"1024": 18}}
        >>> verdict_line("stock", {"claimed": None, "effective": {"absolute": found}})
        'stock claims no length; nothing is decided yet: 18 more straight hits at 1K would prove that length.'
    """
    claimed = entry.get("claimed")
    claim = f"{name} claims {length_label(claimed) if claimed else 'no length'}"
    found = (entry.get("effective") or {}).get(rule)
    if not found or not found["verdicts"]:
        return f"{claim}; nothing has been scored yet."
    low, high = found["low"], found["high"]
    share = f", {100 * low / claimed:.3g}% of the claim," if low and claimed else ""
    how = f"{found['confidence']:.0%} interval" if found.get("confidence") else "each length judged at 95%"
    if rule == "own" and not found.get("confidence"):
        how += " against its own short score as measured"
    if low is None and high is None:
        extra = next(iter((found.get("needed") or {}).items()), None)
        first = next((length for length, call in found["verdicts"].items() if call != "pass"), None)
        if extra and extra[0] == first:
            more = f"{extra[1]} more straight hits at {length_label(int(extra[0]))} would prove that length"
        else:  # nothing longer counts before the shortest length has passed
            more = next(iter(unsettled_text(found)), "give more trials")
        return f"{claim}; nothing is decided yet: {more}."
    shortest, longest = (f(map(int, found["verdicts"])) for f in (min, max))
    parts = []
    if low is not None:
        last = ", the longest length tested," if low == longest else ""
        parts.append(f"it is shown to work to {length_label(low)}{share or last}")
    if high is not None:
        first = ", the shortest length tested" if high == shortest else ""
        if low is None and not first:
            first = ", and no shorter length is proven yet"
        parts.append(f"{'and' if parts else 'it is shown'} to fail at {length_label(high)}{first}")
    return f"{claim}; {' '.join(parts).rstrip(',')} ({how}){left_open(found, entry)}."


def left_open(found: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """What to add to a verdict that shows a length to work, since its controls leave it open; mostly nothing.

    Args:
        found: One rule's part of a summary.
        entry: The variant's.

    >>> left_open({"low": 1024}, {}), left_open({"low": None}, {})
    ('', '')
    """
    doubt = "" if found["low"] is None else caveat(entry.get("control") or {})
    return doubt and f"; {doubt}"


def cost_line(rows: Sequence[Mapping[str, Any]]) -> str:
    """What a cost run found at its longest length, in a sentence.

    Args:
        rows: as in ``cost.jsonl``.

    Examples:
        >>> def row(name, seconds, peak, length=1024):
        ...     took = {"ttft_seconds": {"median": seconds}, "peak_bytes": peak}
        ...     return {"variant": name, "length": length, "outcome": "ok", **took}
        >>> wall = {"variant": "standard", "length": 2048, "outcome": "oom"}
        >>> said = cost_line([row("stock", 2.0, 2 << 30), row("window", 1.0, 1 << 30), wall])
        >>> said.partition(";")[0]
        'At 1K tokens the first one comes after 1 s (window) to 2 s (stock), with 1.0 to 2.0 GiB at the peak'
        >>> said.partition("; ")[2]
        'standard runs out of memory at 2K.'
    """
    done = [row for row in rows if row["outcome"] == "ok"]
    parts = []
    if done:
        longest = max(row["length"] for row in done)
        there = [row for row in done if row["length"] == longest]
        there.sort(key=lambda row: row["ttft_seconds"]["median"])
        first, last = there[0], there[-1]
        times = [f"{row['ttft_seconds']['median']:.3g} s ({row['variant']})" for row in (first, last)]
        sizes = sorted(row["peak_bytes"] / 2**30 for row in there)
        said, peak = times[0], f"{sizes[0]:.1f}"
        if len(there) > 1:
            said = f"{times[0]} to {times[1]}"
            peak = " to ".join(dict.fromkeys(f"{one:.1f}" for one in (sizes[0], sizes[-1])))
        at = length_label(longest)
        parts.append(f"At {at} tokens the first one comes after {said}, with {peak} GiB at the peak")
    for outcome, said in _ENDS.items():
        ends: dict[str, int] = {}
        for row in rows:
            if row["outcome"] == outcome:
                ends[row["variant"]] = min(row["length"], ends.get(row["variant"], row["length"]))
        parts += [f"{name} {said} at {length_label(length)}" for name, length in ends.items()]
    return "; ".join(parts) + "." if parts else "Nothing has been measured yet."


_ENDS = {"oom": "runs out of memory", "timeout": "runs out of time", "error": "fails"}


def _scored(entry: Mapping[str, Any]) -> dict[int, tuple[int, int]]:
    return {part["length"]: (part["hits"], part["n"]) for part in entry["lengths"] if part["n"]}


def _probes(scored: Mapping[str, Mapping[int, tuple[int, int]]]) -> str:
    sizes = sorted({n for lengths in scored.values() for _, n in lengths.values()})
    if len(sizes) > 1:
        return f"With {sizes[0]} to {sizes[-1]} probes a length"
    return f"With {sizes[0]} probe{'s' if sizes[0] > 1 else ''} a length"


def _count(hits: int, n: int) -> str:
    if n == 1:
        return "the one needle" if hits else "nothing"
    return f"all {n}" if hits == n else f"none of {n}" if not hits else f"{hits} of {n}"


def _span(name: str, claimed: int | None, lengths: Mapping[int, tuple[int, int]]) -> str:
    """How far one variant sees, from its shortest length upwards."""
    ladder = sorted(lengths)
    shortest, longest = ladder[0], ladder[-1]
    hits, n = lengths[shortest]
    if hits / n < 0.5:
        even = f"{name} finds only {hits} of {n}" if hits else f"{name} finds {_count(hits, n)}"
        return f"{even} even at {length_label(shortest)}, the shortest length tested"
    kept = shortest
    for length in ladder:
        if verdict(*lengths[length], _KEPT * hits / n) == "fail":
            break
        kept = length
    if kept == longest:
        claim = "" if claimed is None else f", which claims {length_label(claimed)},"
        plural = "the longest length tested" if len(ladder) > 1 else "the only length tested"
        return f"{name}{claim} finds {_count(*lengths[longest])} at {length_label(longest)}, {plural}"
    after = ladder[ladder.index(kept) + 1]
    rest = f"finds {_count(*lengths[after])} at {length_label(after)}"
    if after != longest:
        rest += f" and {_count(*lengths[longest])} at {length_label(longest)}"
    return f"{name} keeps its recall to {length_label(kept)}{_against(claimed, kept)}, then {rest}"


def _against(claimed: int | None, kept: int) -> str:
    if claimed is None:
        return ""
    if claimed > kept:
        return f" of the {length_label(claimed)} it claims"
    return ", all that it claims" if claimed == kept else f", beyond the {length_label(claimed)} it claims"


def _others(
    variants: Mapping[str, Mapping[str, Any]],
    scored: Mapping[str, Mapping[int, tuple[int, int]]],
    lead: str,
    top: int,
) -> list[str]:
    """What the other variants find at the longest length of the first, best first."""
    there = {name: lengths[top] for name, lengths in scored.items() if name != lead and top in lengths}
    ranked = sorted(there, key=lambda name: -there[name][0] / there[name][1])
    parts = []
    if len(ranked) > _NAMED:
        best, worst = ranked[0], ranked[-1]
        ends = f"{best} finds {_count(*there[best])} and {worst} {_count(*there[worst])}"
        parts.append(f"at {length_label(top)}, of {len(ranked)} other variants, {ends}")
    elif ranked:
        phrases = {name: f"{_count(*there[name])}{_only_near(variants[name], top)}" for name in ranked}
        alike = [(phrase, list(names)) for phrase, names in groupby(ranked, key=phrases.__getitem__)]
        verb = " finds" if len(alike[0][1]) == 1 else " find"
        said = [f"{_listed(names)}{'' if at else verb} {phrase}" for at, (phrase, names) in enumerate(alike)]
        parts.append(f"at {length_label(top)} {_listed(said) if len(ranked) == len(alike) else ', '.join(said)}")
    missing = [name for name in variants if name != lead and name not in there]
    if missing and len(missing) <= _NAMED:
        verb = "has" if len(missing) == 1 else "have"
        parts.append(f"{_listed(missing)} {verb} no score there")
    elif missing:
        parts.append(f"{len(missing)} variants have no score there")
    return parts


def _only_near(entry: Mapping[str, Any], length: int) -> str:
    """Point out a variant that sees just the end of the text, as a window does."""
    found = {cell["depth"]: cell["recall"] for cell in entry["cells"] if cell["length"] == length and cell["n"]}
    near = [recall for depth, recall in found.items() if depth >= 0.75]
    far = [recall for depth, recall in found.items() if depth < 0.75]
    return " (only near the end)" if len(far) > 1 and not any(far) and any(near) else ""


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
