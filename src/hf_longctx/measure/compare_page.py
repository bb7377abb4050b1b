"""The comparison of two runs as a page and as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .heatmap import length_label, replacing
from .page import fill
from .sections.cost import OUTCOMES
from .sections.effective import ends
from .sections.pairs import p_text
from .sections.words import number, percent, plain, seconds, size

if TYPE_CHECKING:
    from rich.console import Group

_COST = {
    "ttft_seconds": ("first token", seconds),
    "prefill_tokens_per_second": ("prefill tok/s", number),
    "decode_tokens_per_second": ("decode tok/s", number),
    "peak_bytes": ("peak memory", size),
    "cache_bytes": ("cache", size),
}


def write(document: Mapping[str, Any], path: Path) -> None:
    """Write the page of a comparison, complete or not at all.

    Args:
        document: what `compare.compare` returns.
        path: the file; its folder exists.

    Raises:
        ImportError: jinja2 is not installed.
    """
    html = fill("compare.html.j2", **view(document))
    with replacing(path) as partial:
        partial.write_text(html, encoding="utf-8")


def view(document: Mapping[str, Any]) -> dict[str, Any]:
    """What the page and the terminal show of a comparison, as text.

    Args:
        document: what `compare.compare` returns.
    """
    costs = [_cost(line) for line in document["cost"]]
    return {
        "first": document["first"],
        "other": document["other"],
        "differ": [
            {
                "part": one["part"] or "",
                "field": one["field"].removesuffix("_bytes").replace("_", " "),
                **{side: _setting(one["field"], one[side]) for side in ("first", "other")},
            }
            for one in document["differ"]
        ],
        "only": [
            f"{document[one['in']]} alone has {one['part']}" + (f": {one['variant']}" if one["variant"] else "")
            for one in document["only"]
        ],
        "recall": [_recall(line) for line in document["recall"]],
        "reasons": list(dict.fromkeys(line["unpaired"] for line in document["recall"] if line["unpaired"])),
        "effective": [
            _head(line) | {"rule": line["rule"], "first": ends(line["first"]), "other": ends(line["other"])}
            for line in document["effective"]
        ],
        "failed": any(line["outcome"] for line in costs),
        "costs": [title for title, _ in _COST.values()],
        "cost": costs,
    }


def terminal(document: Mapping[str, Any]) -> Group:
    """A comparison for the terminal."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown = view(document)
    first, other = shown["first"], shown["other"]

    answered = len({line["part"] for line in shown["recall"]}) > 1
    costed = len({line["part"] for line in shown["cost"]}) > 1

    def named(line: Mapping[str, Any], several: bool) -> str:
        return f"{line['part']}: {line['name']}" if several else line["name"]

    def table(title: str, *columns: str) -> Table:
        made = Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
        for column in columns:
            made.add_column(Text(column), overflow="fold")
        return made

    def cells(*values: str) -> list[Text]:
        return [Text(value or "-") for value in values]

    parts: list[Any] = []
    if shown["differ"]:
        made = table("The runs differ in more than their results", "part", "setting", first, other)
        for one in shown["differ"]:
            made.add_row(*cells(one["part"], one["field"], one["first"], one["other"]))
        parts.append(made)
    if shown["recall"]:
        made = table("Recall", "variant", "length", first, other, "change", "p", "alone")
        for one in shown["recall"]:
            alone = f"{one['only_first']}:{one['only_other']}" if one["p"] else ""
            made.add_row(
                *cells(named(one, answered), one["length"], one["first"], one["other"], one["change"], one["p"], alone)
            )
        parts.append(made)
    if shown["effective"]:
        made = table("Effective length", "variant", "rule", first, other)
        for one in shown["effective"]:
            made.add_row(*cells(named(one, answered), one["rule"], one["first"], one["other"]))
        parts.append(made)
    if shown["cost"]:
        made = table(f"Cost of {other}, and its ratio to {first}", "variant", "length", *shown["costs"])
        for one in shown["cost"]:
            figures = [" ".join(filter(None, (f["other"], f["ratio"]))) for f in one["figures"]]
            made.add_row(
                *cells(named(one, costed), one["length"], *(figures if not one["outcome"] else [one["outcome"]]))
            )
        parts.append(made)
    parts += [Text(line) for line in (*shown["reasons"], *shown["only"])]
    return Group(*parts)


def _setting(field: str, value: Any) -> str:
    return "" if value is None else plain(value, field) or "none"


def _head(line: Mapping[str, Any]) -> dict[str, Any]:
    return {"part": line["part"], "name": line["variant"]}


def _length(line: Mapping[str, Any]) -> dict[str, Any]:
    return _head(line) | {"length": length_label(line["length"]), "length_value": line["length"]}


def _recall(line: Mapping[str, Any]) -> dict[str, Any]:
    paired, difference = line["paired"] or {}, line["difference"]
    low: Any = paired.get("low")
    high: Any = paired.get("high")
    return _length(line) | {
        "first": _score(line["first"]),
        "other": _score(line["other"]),
        "change": "" if difference is None else f"{100 * difference:+.3g}",
        "change_value": difference or 0.0,
        "better": (difference or 0.0) > 0,
        "sure": paired.get("p", 1.0) < 0.05,
        "p": p_text(paired["p"]) if paired else "",
        "p_value": paired.get("p", 2.0),
        "only_first": paired.get("only_first", ""),
        "only_other": paired.get("only_other", ""),
        "interval": "" if low is None else f"{100 * low:+.3g} to {100 * high:+.3g}",
    }


def _score(part: Mapping[str, Any] | None) -> str:
    if part is None or not part["n"]:
        return ""
    return f"{part['hits']}/{part['n']}" if part["hits"] is not None else f"{percent(part['score'])} of {part['n']}"


def _cost(line: Mapping[str, Any]) -> dict[str, Any]:
    outcomes = line["outcomes"]
    failed = any(outcome not in ("ok", None) for outcome in outcomes)
    said = ["not measured" if one is None else OUTCOMES.get(one, one) for one in outcomes]
    figures = []
    for key, (title, say) in _COST.items():
        figure = line["figures"][key]
        ratio = figure["ratio"]
        figures.append(
            {
                "title": title,
                "first": say(figure["first"]),
                "other": say(figure["other"]),
                "ratio": f"x{ratio:.2f}" if ratio is not None else "",
                "value": ratio if ratio is not None else "Infinity",
            }
        )
    return _length(line) | {"figures": figures, "outcome": ", ".join(said) if failed or None in outcomes else ""}
