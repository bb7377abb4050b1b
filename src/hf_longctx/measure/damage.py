"""What a patch does to a model at the lengths that it could already read: perplexity and KL by position.

Taken from the reading of the needle run, of which only the last token's logits were computed. A few of its tokens are
now predicted as well: a seeded sample, even over bins of position, the same for every variant. So nothing is read a
second time. The stock model runs first and its logits are kept; each variant is compared with them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .grid import Grid, Probe
from .listener import Listener
from .side_rows import SideRows
from .variants import STOCK

if TYPE_CHECKING:
    import torch

TOKENS = 256
"""Most tokens that are predicted in a bin."""
MEMORY = 2**28
"""Most bytes of the stock model's logits in memory, at four a logit: 256 MiB, beside as much while they are computed.
A large vocabulary, or many bins, leaves fewer tokens a bin."""
_NARROWEST = 1024
"""A bin from the text's beginning is not cut below this length."""
_DRAWS = 1000
"""Resamples of the bootstrap."""


@dataclass(frozen=True)
class Bin:
    """Part of a text and which of its tokens are predicted.

    Attributes:
        start: first position.
        stop: end.
        places: positions of the tokens that are predicted, ascending.
    """

    start: int
    stop: int
    places: tuple[int, ...]


def edges(lengths: Sequence[int]) -> list[int]:
    """Where bins of position meet: at the tested lengths, and between them wherever a bin would more than double.

    Args:
        lengths: tested lengths in tokens.

    Returns:
        Ascending positions, 0 first.

    >>> edges([1024, 2048, 4096]), edges([8192, 12288])
    ([0, 1024, 2048, 4096], [0, 1024, 2048, 4096, 8192, 12288])
    """
    found = [0]
    for stop in sorted(lengths):
        between = []
        while stop > 2 * max(found[-1], _NARROWEST // 2):
            between.append(stop)
            stop //= 2
        found += [stop, *reversed(between)]
    return found


def draw_bins(probes: Sequence[Probe], grid: Grid, *, vocabulary: int) -> tuple[Bin, ...]:
    """Choose which tokens of a trial's text are predicted.

    Tokens of the template and of needles are left out: their values are random, and no model predicts them. So are
    those that the prompt of the bin's length does not hold, where question and answer stand in their place.

    Args:
        probes: of one trial.
        grid: what they were made from.
        vocabulary: logits a token.

    Returns:
        The bins of the longest text that is read, by ascending position; none is empty.
    """
    usable = [probe for probe in probes if probe.reason is None]
    if not usable:
        return ()
    texts = {probe.length: probe.at for probe in usable}
    barred = {
        place
        for probe in usable
        if probe.needle_at is not None and probe.needle_at + len(probe.needle_ids) <= probe.at
        for place in range(probe.needle_at, probe.needle_at + len(probe.needle_ids))
    }
    first = max(len(grid.prompt.head), 1)
    ends = edges([length for length in grid.lengths if length <= usable[-1].length])
    allowed = [
        [place for place in range(max(low, first), min(high, texts.get(high, high))) if place not in barred]
        for low, high in zip(ends, ends[1:])
    ]
    most = max(1, min(TOKENS, MEMORY // (4 * vocabulary * len(allowed))))
    rng = random.Random(f"{grid.seed}/damage")
    return tuple(
        Bin(low, high, tuple(sorted(rng.sample(places, min(most, len(places))))))
        for low, high, places in zip(ends, ends[1:], allowed)
        if places
    )


class Damage:
    """The damage rows of a run: what there is, what is missing, and the stock model's logits to compare with.

    Measured on the text of the first trial. Rows are `{"variant", "trial", "length", "depth", "kind": "damage",
    "start", "stop", "places", "nll", "kl", "same"}`: a bin each, in nats, with `kl` and `same` null where there is
    nothing to compare with; `nll` is empty where the memory ended before the bin.

    Args:
        rows: the run's damage rows.
        probes: of the first trial.
        grid: what they were made from.
        variants: names of the variants of this process, in order.
        vocabulary: logits a token.
    """

    def __init__(
        self, rows: SideRows, probes: Sequence[Probe], grid: Grid, variants: Iterable[str], *, vocabulary: int
    ) -> None:
        self._rows = rows
        self._bins = draw_bins(probes, grid, vocabulary=vocabulary)
        self._ids = next((probe.trunk for probe in reversed(probes) if probe.reason is None), ())
        self._variants = tuple(variants)
        self._reference: torch.Tensor | None = None

    def listener(self, variant: str) -> Listener | None:
        """What listens to the reading of a variant; None where nothing is missing.

        The stock model is heard again where a variant still has to be compared with it: a run that goes on has its
        rows, but no longer its logits.

        Args:
            variant: which.
        """
        places = [place for one in self._bins for place in one.places]
        others = variant == STOCK and any(self._missing(name) for name in self._variants if name != STOCK)
        if not places or not (self._missing(variant) or others):
            return None
        reference = None if variant == STOCK else self._reference
        return Listener(self._ids, places, reference=reference, keep=others)

    def keep(self, variant: str, heard: Listener) -> None:
        """Write the rows that were missing.

        Args:
            variant: which.
            heard: what listened to it.
        """
        if heard.kept is not None:
            self._reference = heard.kept[: len(heard.nll)]
        missing, done = self._missing(variant), 0
        for one in self._bins:
            span = slice(done, done + len(one.places))
            done = span.stop
            if one not in missing:
                continue
            whole, compared = done <= len(heard.nll), done <= len(heard.kl)
            self._rows.add(
                {
                    "variant": variant,
                    "trial": 0,
                    "length": one.stop,
                    "depth": None,
                    "kind": "damage",
                    "start": one.start,
                    "stop": one.stop,
                    "places": list(one.places),
                    "nll": _rounded(heard.nll[span], 6) if whole else [],
                    "kl": _rounded(heard.kl[span], 9) if compared else None,
                    "same": heard.same[span] if compared else None,
                }
            )

    def _missing(self, variant: str) -> list[Bin]:
        """Bins without a row, or with one that could be compared with the stock model now and was not."""
        compares = variant != STOCK and STOCK in self._variants
        return [one for one in self._bins if self._is_missing(variant, one, compares=compares)]

    def _is_missing(self, variant: str, one: Bin, *, compares: bool) -> bool:
        row, stock = (self._rows.rows.get((name, 0, one.stop, None, "damage")) for name in (variant, STOCK))
        if row is None:
            return True
        return compares and row["kl"] is None and bool(row["nll"]) and (stock is None or bool(stock["nll"]))


def summarise_damage(rows: Iterable[Mapping[str, Any]], *, variants: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Perplexity and KL by position, with their intervals.

    The tokens of a bin are drawn at random, so an interval (percentile bootstrap over them, 95%) says how well they
    stand for all of the bin's tokens in this text; another text is another matter.

    Args:
        rows: as `Damage` writes them.
        variants: names, in order.

    Returns:
        Per variant a list by ascending position: `start`, `stop` (tokens), `tokens` (predicted), `perplexity`, `kl`
        (mean of KL(stock || variant) in nats, Kullback and Leibler 1951; None for stock),
        `same` (share of tokens whose likeliest prediction is stock's), `ratio` (perplexity over stock's on the same
        tokens), and the ends of their intervals as `perplexity_low`, `perplexity_high`, `kl_low` and so on. A figure
        is None where a logit was not finite.

    >>> row = {"variant": "stock", "start": 0, "stop": 1024, "places": [3, 9], "nll": [1.0, 1.0]}
    >>> part = summarise_damage([row | {"kl": None, "same": None}], variants=["stock"])["stock"][0]
    >>> part["tokens"], round(part["perplexity"], 3), part["kl"]
    (2, 2.718, None)
    """
    found: dict[str, list[dict[str, Any]]] = {}
    given = [row for row in rows if row["nll"]]
    stock = {row["stop"]: row for row in given if row["variant"] == STOCK}
    for name in variants:
        found[name] = []
        for row in sorted((row for row in given if row["variant"] == name), key=lambda row: row["stop"]):
            entry: dict[str, Any] = {"start": row["start"], "stop": row["stop"], "tokens": len(row["nll"])}
            entry |= _figure("perplexity", _mean(row["nll"]), exponent=True)
            entry |= divergence(row["kl"], row["same"])
            base = stock.get(row["stop"])
            differences = None
            if base is not None and name != STOCK and base["places"] == row["places"]:
                pairs = zip(row["nll"], base["nll"])
                differences = [None if a is None or b is None else a - b for a, b in pairs]
            entry |= _figure("ratio", _mean(differences), exponent=True)
            found[name].append(entry)
    return found


def divergence(kl: Sequence[float | None] | None, same: Sequence[int] | None) -> dict[str, float | None]:
    """Mean KL of tokens with the ends of its 95% interval, and the share whose likeliest prediction is the same.

    Args:
        kl: of each token, in nats; None for no tokens, or one that is not finite.
        same: of each token, 1 or 0.

    Returns:
        `kl`, `kl_low`, `kl_high` and `same`.

    >>> divergence(None, None)
    {'kl': None, 'kl_low': None, 'kl_high': None, 'same': None}
    """
    return _figure("kl", _mean(kl)) | {"same": None if not same else sum(same) / len(same)}


def damage_lines(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """The damage as text, a line a variant.

    Args:
        found: as `summarise_damage` gives it.

    >>> part = {"stop": 1024, "perplexity": 21.0, "kl": 0.012, "ratio": 1.004}
    >>> stock = part | {"perplexity": 20.92, "kl": None, "ratio": None}
    >>> for line in damage_lines({"stock": [stock], "window": [part, part | {"stop": 2048, "kl": 0.4, "ratio": 1.5}]}):
    ...     print(line)
    stock: perplexity 20.9 to 1K
    window: KL to stock 0.012 to 1K, 0.4 to 2K; perplexity x1.00, x1.50
    """
    from .heatmap import length_label

    said = []
    for name, parts in found.items():
        if not parts:
            continue
        compared = [part for part in parts if part["ratio"] is not None]
        if not compared:
            figures = [f"{_text(part['perplexity'], '.3g')} to {length_label(part['stop'])}" for part in parts]
            said.append(f"{name}: perplexity {', '.join(figures)}")
            continue
        figures = [f"{_text(part['kl'], '.2g')} to {length_label(part['stop'])}" for part in compared]
        ratios = [f"x{part['ratio']:.2f}" for part in compared]
        said.append(f"{name}: KL to stock {', '.join(figures)}; perplexity {', '.join(ratios)}")
    return said


def _text(value: float | None, form: str) -> str:
    return "not finite" if value is None else format(value, form)


def _rounded(values: Sequence[float], places: int) -> list[float | None]:
    """As JSON holds them: what is not finite becomes null."""
    return [round(value, places) if math.isfinite(value) else None for value in values]


def _figure(name: str, found: tuple[float, float, float] | None, *, exponent: bool = False) -> dict[str, float | None]:
    values: Sequence[float | None] = (None, None, None) if found is None else found
    if exponent:
        # e^700 is about the largest float; past it a perplexity says no more than "broken".
        values = [math.exp(value) if value is not None and value < 700 else None for value in values]
    return dict(zip((name, f"{name}_low", f"{name}_high"), values))


def _mean(values: Sequence[float | None] | None) -> tuple[float, float, float] | None:
    from .paired import bootstrap_difference

    given = [value for value in values or () if value is not None]
    if not given or len(given) < len(values or ()):
        return None
    mean, low, high = bootstrap_difference(given, draws=_DRAWS)
    return (mean, mean, mean) if len(given) < 2 else (mean, low, high)
