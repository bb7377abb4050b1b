"""Draw what `attention.py` measured.

python evals/bench/attention_plot.py evals/results/attention-cpu.json evals/results/attention-cpu.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter

#: Lines in the left picture: more would hide each other.
SHOWN = [
    "window:1024+global:4",
    "dilated:512,8",
    "strided:128,128",
    "block:512,1",
    "random:3,64+window:128",
    "bigbird",
]
#: Okabe and Ito's colours, told apart by every kind of sight.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"]


def draw(results: list[dict[str, Any]], path: Path, at: int = 16384) -> None:
    """Left: seconds by length, forward. Right: ours and the peers over the limit of each pattern, at one length."""
    forward = [row for row in results if row["mode"] == "forward"]
    lengths = sorted({row["tokens"] for row in forward})
    at = at if at in lengths else lengths[-1]
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 6.2), layout="constrained")

    def line(key: str, pattern: str, **style: Any) -> None:
        points = [(r["tokens"], r[key]) for r in forward if r["pattern"] == pattern and r[key] is not None]
        if points:
            left.plot(*zip(*points, strict=True), **style)

    line("causal_seconds", "window:1024", color="black", lw=2, marker="o", ms=4, label="causal SDPA")
    line("masked_seconds", "window:1024", color="0.5", lw=2, ls="--", marker="s", ms=4, label="SDPA under a mask")
    for pattern, colour in zip(SHOWN, COLOURS, strict=True):
        line("seconds", pattern, color=colour, marker="o", ms=4, label=pattern)
    left.set(xscale="log", yscale="log", xlabel="tokens", ylabel="seconds", title="Forward, by length")
    left.set_xticks(lengths, [f"{n // 1024}K" for n in lengths])
    left.xaxis.set_minor_formatter(NullFormatter())
    left.grid(alpha=0.3)
    left.legend(frameon=False)

    rows = [row for row in forward if row["tokens"] == at and row["pattern"] != "full"]
    rows.sort(key=lambda row: row["seconds"] / row["causal_seconds"])
    places = range(len(rows))
    for key, label, marker, colour in (
        ("seconds", "ours", "o", "#0072B2"),
        ("flex_seconds", "compiled FlexAttention", "D", "#D55E00"),
        ("masked_seconds", "SDPA under a mask", "s", "0.5"),
    ):
        found = [(row[key] / row["causal_seconds"], place) for place, row in zip(places, rows) if row[key] is not None]
        if found:
            right.scatter(*zip(*found, strict=True), marker=marker, color=colour, label=label, zorder=3)
    right.scatter([row["pairs"] for row in rows], places, marker="|", s=120, color="black", label="visible pairs")
    right.axvline(1, color="black", lw=1, ls=":")
    right.set_yticks(places, [row["pattern"] for row in rows])
    right.set(xscale="log", xlabel="time over causal SDPA's (dotted: 1)", title=f"Forward, {at // 1024}K tokens")
    right.grid(alpha=0.3, axis="x")
    right.legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text())["results"], Path(sys.argv[2]))
