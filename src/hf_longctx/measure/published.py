"""Marketed against measured windows of published models, as printed and by each suite's own rule."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

#: A score counts while it reaches this many per cent (RULER: Llama 2 7B at 4K), or this share of the model's own
#: short score (NoLiMa, and here BABILong, which states no rule).
ABSOLUTE, SHARE = 85.6, 0.85


@dataclass(frozen=True)
class Effective:
    """How far a model really reads.

    Attributes:
        length: the longest tested length that clears the rule, every shorter one clearing it too; None where not even
            the shortest does.
        open: whether it is the longest that was tested, so that the model may read farther.
        line: the score to reach, in per cent.
        first: the shortest length tested.
    """

    length: int | None
    open: bool
    line: float
    first: int

    def __str__(self) -> str:
        """`<4K`, `64K` or `>=128K`."""
        from .heatmap import length_label

        if self.length is None:
            return f"<{length_label(self.first)}"
        return f"{'>=' if self.open else ''}{length_label(self.length)}"


def effective(scores: Mapping[int, float], line: float) -> Effective:
    """The longest length up to which every score reaches a line.

    Args:
        scores: tokens to per cent, at least one.
        line: per cent.

    >>> str(effective({4096: 97.7, 8192: 90.0, 16384: 85.5}, 85.6)), str(effective({4096: 80.0}, 85.6))
    ('8K', '<4K')
    """
    longest = None
    lengths = sorted(scores)
    for length in lengths:
        # Published figures have one decimal, and so do the lines that were drawn with them.
        if round(scores[length], 1) < round(line, 1):
            break
        longest = length
    return Effective(longest, longest == lengths[-1], line, lengths[0])


def by_rule(row: Mapping[str, Any]) -> Effective:
    """The effective length of a row by its suite's rule."""
    scores = {int(length): score for length, score in row["scores"].items()}
    return effective(scores, ABSOLUTE if row["suite"] == "ruler" else SHARE * row["base"])


@lru_cache
def _data() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))


def published(name: str | None = None) -> list[dict[str, Any]]:
    """Rows of published tables.

    Args:
        name: keep the models whose name holds this, spaces and hyphens aside; None keeps all.

    Returns:
        A dict each: `suite`, `model`, `parameters`, `claimed` (tokens or None), `printed` (the effective length as its
        authors print it, or None), `effective` (tokens by the rule, or None), `effective_text`, `differs` (whether the
        two disagree), `line`, `base` (short score or None), `scores` ({tokens: per cent}), `by_authors` (reported by
        the model's own authors), `architecture` (a family or None), `pattern` and `rope` (where known),
        `architecture_status`, and `source` (title, url, paper, date, status).

    Raises:
        ValueError: no model of that name.

    >>> [(r["suite"], r["printed"], r["effective_text"]) for r in published("Qwen3-14B")]
    [('ruler', '>128K', '64K')]
    """
    data = _data()
    rows = []
    for row in data["models"]:
        if name is not None and _plain(name) not in _plain(row["model"]):
            continue
        found = by_rule(row)
        known = data["architectures"].get(row["architecture"]) or {}
        rows.append(
            {
                "suite": row["suite"],
                "model": row["model"],
                "parameters": row["parameters"],
                "claimed": row["claimed"],
                "printed": row["printed"],
                "effective": found.length,
                "effective_text": str(found),
                "differs": row["printed"] is not None and row["printed"].replace(">", ">=") != str(found),
                "line": round(found.line, 1),
                "base": row.get("base"),
                "scores": {int(length): score for length, score in row["scores"].items()},
                "by_authors": row["by_authors"],
                "architecture": row["architecture"],
                "pattern": known.get("pattern"),
                "rope": known.get("rope"),
                "architecture_status": known.get("status"),
                "source": data["sources"][row["source"]],
            }
        )
    if not rows:
        raise ValueError(f"no published model's name holds {name!r}: `hf-longctx models` lists them all")
    return rows


def one_model(name: str) -> list[dict[str, Any]]:
    """The rows of one published model, a row a suite.

    Args:
        name: its name, spaces, hyphens and case aside, or a part of it that no other model's name holds.

    Returns:
        As `published`.

    Raises:
        ValueError: no such model, or several.

    >>> [row["suite"] for row in one_model("qwen3 14b")]
    ['ruler']
    """
    wanted = _plain(name)
    rows = [row for row in published() if wanted in _plain(label(row))]
    if not rows:
        published(name)  # raises, and says where the names are
    exact = [row for row in rows if wanted in (_plain(row["model"]), _plain(label(row)))]
    sizes = {_plain(row["parameters"]) for row in exact if row["parameters"]}
    if exact and len(sizes) <= 1:
        return exact  # one table gives the size, another does not: still one model
    names = {_plain(label(row)): label(row) for row in exact or rows}
    if len(names) > 1:
        raise ValueError(
            f"{name!r} fits {len(names)} published models: choose one of {', '.join(sorted(names.values()))}"
        )
    return rows


def label(row: Mapping[str, Any]) -> str:
    """A row's model with its size, where the name does not hold it.

    >>> label({"model": "Mixtral-8x7B", "parameters": "8x7B"}), label({"model": "Yi", "parameters": "34B"})
    ('Mixtral-8x7B', 'Yi 34B')
    """
    size = row["parameters"]
    return row["model"] if not size or _plain(size) in _plain(row["model"]) else f"{row['model']} {size}"


def _plain(name: str) -> str:
    return name.lower().replace(" ", "").replace("-", "")
