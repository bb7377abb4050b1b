"""How often does the interval of the effective length hold the truth? Simulated models with known curves.

    python evals/bench/interval_coverage.py --runs 300 --out evals/results/coverage.json

Each simulated model has a score that falls with length along a logistic curve; its scores are hits, or shares of four
answers, with a difficulty that all lengths of a seed have in common. The procedure of `measure/effective.py` is run
on it, and its interval compared with where the true curve crosses the rule's line. An interval that always holds the
truth may just be wide, so its width stands beside: in doublings, and a rung of the ladder is one.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_longctx.measure.defaults import TRIALS
from hf_longctx.measure.effective import RULES, Climb, judge
from hf_longctx.measure.effective_curve import curve_length

LADDER = (1024, 2048, 4096, 8192, 16384, 32768)


@dataclass(frozen=True)
class Curve:
    """A model's true score at a length.

    Attributes:
        top: score at length 0.
        half: length at which half of it is left, in tokens.
        slope: how sharply it falls, on a logarithmic scale; infinity for a step.
        answers: answers that a score is the mean of.
        spread: of the difficulty that a seed brings to all lengths, as a shift of the score.
    """

    top: float
    half: float
    slope: float
    answers: int = 1
    spread: float = 0.0

    def mean(self, length: float) -> float:
        if math.isinf(self.slope):
            return self.top if length < self.half else 0.05
        return self.top / (1 + (length / self.half) ** self.slope)

    def score(self, length: int, trial: int, seed: int) -> float:
        # The shift is at most what keeps the chance within 0 and 1, both ways alike, so that the mean stays the mean.
        mean = self.mean(length)
        shift = random.Random(f"{seed}/{trial}").choice((-1, 1)) * min(self.spread, mean, 1 - mean)
        rng = random.Random(f"{seed}/{trial}/{length}")
        return sum(rng.random() < mean + shift for _ in range(self.answers)) / self.answers

    def truth(self, rule: str) -> float:
        """Where the curve crosses the rule's line: 0 below the shortest length, infinity past the longest."""
        line = RULES[rule] * (1 if rule == "absolute" else self.mean(LADDER[0]))
        if self.mean(LADDER[0]) < line:
            return 0.0
        if self.mean(LADDER[-1]) >= line:
            return math.inf
        low, high = LADDER[0], LADDER[-1]
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.mean(middle) >= line else (low, middle)
        return low


CURVES = {
    "step at 6K": Curve(1.0, 6000, math.inf),
    "falls fast after 8K": Curve(0.99, 12000, 6),
    "falls slowly": Curve(0.98, 16000, 2),
    "shares of four, seeds alike": Curve(0.97, 12000, 4, answers=4, spread=0.1),
    "never good": Curve(0.80, 30000, 3),
    "never fails": Curve(0.995, 1e9, 2),
    "just above the line": Curve(0.8565, 1e9, 2),
    "just below the line": Curve(0.8555, 1e9, 2),
}


def simulate(curve: Curve, climb: Climb, rule: str, seed: int) -> tuple[tuple[float, float], tuple[float, float], int]:
    """One run: the promised interval, the bootstrap's, and the trials taken."""
    scores: dict[int, list[float | None]] = {}
    while (ask := (found := judge(scores, climb, rule)).ask) is not None:
        length, trial = ask
        scores.setdefault(length, []).append(curve.score(length, trial, seed))
    promised = (found.low or 0.0, math.inf if found.high is None else found.high)
    _, low, high = curve_length(scores, climb, rule, draws=100)
    return promised, (low, high), sum(map(len, scores.values()))


def width(low: float, high: float) -> float:
    """Of an interval, in doublings; an open end counts as one rung past the ladder.

    >>> width(4096, 5120) < 1, width(LADDER[-1], math.inf), width(0, math.inf)
    (True, 1.0, 7.0)
    """
    return math.log2(min(high, 2 * LADDER[-1]) / max(low, LADDER[0] / 2))


def coverage(runs: int, climb: Climb) -> list[dict[str, object]]:
    """Share of runs whose interval holds the truth, for every curve and rule."""
    found = []
    for name, curve in CURVES.items():
        for rule in RULES:
            truth = curve.truth(rule)
            held = boot = decided = trials = 0
            widths = []
            for seed in range(runs):
                promised, bootstrap, spent = simulate(curve, climb, rule, seed)
                held += promised[0] <= truth and (truth < promised[1] or math.isinf(promised[1]))
                boot += bootstrap[0] <= truth <= bootstrap[1]
                decided += 0 < promised[1] <= 2 * promised[0]
                trials += spent
                widths.append(width(*promised))
            found.append(
                {
                    "curve": name,
                    "rule": rule,
                    "truth": None if math.isinf(truth) else truth,
                    "coverage": held / runs,
                    "bootstrap_coverage": boot / runs,
                    "within_one_rung": decided / runs,
                    "median_width": float(np.median(widths)),
                    "width_of_9_in_10": float(np.quantile(widths, 0.9)),
                    "trials": trials / runs,
                }
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--out", type=Path, help="Where the JSON goes; else it is printed.")
    given = parser.parse_args()
    climb = Climb(LADDER, trials=given.trials, confidence=given.confidence)
    found = coverage(given.runs, climb)
    document = {"runs": given.runs, "confidence": given.confidence, "trials": given.trials, "found": found}
    if given.out is None:
        print(json.dumps(document, indent=1))
    else:
        given.out.write_text(json.dumps(document, indent=1) + "\n")
    for one in found:
        kept, wide = one["coverage"], one["median_width"]
        print(f"{one['curve']}, {one['rule']}: holds the truth in {kept:.1%}, {wide:.2f} rungs wide", file=sys.stderr)


if __name__ == "__main__":
    main()
