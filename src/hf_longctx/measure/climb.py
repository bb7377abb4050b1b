"""Run the search for the effective length: ask what `effective.judge` wants next, until it or the budget ends."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from .defaults import TRIALS
from .effective import RULES, Climb, judge, summarise
from .evaluate import Evaluation
from .processes import here
from .variants import Variant


def run_effective(
    model: Any,
    tokenizer: Any,
    *,
    tasks: Sequence[str],
    lengths: Sequence[int],
    trials: int = TRIALS,
    bisections: int = 2,
    confidence: float = 0.95,
    budget: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    **options: Any,
) -> dict[str, Any]:
    """Find the effective length of a model and of patched variants of it, with its interval, under both rules.

    Every variant gets an equal share of the time that is left when its turn comes. A run that the budget ends says
    `undecided` where it could not finish; started again in its folder with more it goes on.

    Args:
        model: a Hugging Face causal LM; one that is patched is patched again in the same way afterwards.
        tokenizer: its tokenizer.
        tasks: names of tasks; a trial asks each once and its score is their mean.
        lengths: the ladder, in tokens; the shortest is the base of the rule `own`.
        trials: most trials of a length.
        bisections: how often the gap below the first failure is halved.
        confidence: of the interval.
        budget: seconds; None takes what it takes. No prompt is cut short, so the last may overrun it.
        clock: what the budget is read on.
        **options: as `Evaluation`.

    Returns:
        The summary, as in `summary.json`.

    Raises:
        ValueError: for settings that cannot work, before the model has run, or a folder with another run.
    """
    if budget is not None and not budget > 0:
        raise ValueError(f"budget={budget!r}: give a number of seconds above 0")
    climb = Climb(tuple(sorted(set(lengths))), trials, bisections, confidence)
    work = Evaluation(model, tokenizer, tasks=tasks, longest=climb.ladder[-1], **options)
    end = None if budget is None else clock() + budget

    def effective(name: str) -> dict[str, Any]:
        claimed = work.store.run["variants"][name]["claimed"]
        return summarise(work.scores(name), climb, claimed, seed=work.seed, unfit=work.unfit(name))

    with contextlib.closing(work):
        try:
            for index, variant in enumerate(work.variants):
                # What to ask next depends on the answers so far, so several processes share out whole variants.
                with work.claim(variant.name) as mine:
                    if not mine:
                        continue
                    left = math.ceil((len(work.variants) - index) / here().count)
                    until = None if end is None else clock() + (end - clock()) / left
                    with work.as_variant(variant):
                        _search(work, variant, climb, clock, until)
                work.summary(effective)
            work.store.wait()
        finally:
            # Also on Ctrl-C: what has been found is summed up, and the run goes on from there when started again.
            summary = work.summary(effective)
    work.report()
    return summary


def _search(work: Evaluation, variant: Variant, climb: Climb, clock: Callable[[], float], until: float | None) -> None:
    scores = work.scores(variant.name)
    for rule in RULES:
        while (ask := judge(scores, climb, rule).ask) is not None and (until is None or clock() < until):
            length, trial = ask
            scores.setdefault(length, []).append(work.ask(variant, length, trial))
