"""Run the search for the effective length: ask what `effective.judge` wants next, until it or the budget ends."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from .defaults import TRIALS
from .effective import RULES, Climb, Scores, judge
from .effective_summary import summarise
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

    Every variant gets an equal share of the time that is left when its turn comes, and what some leave over goes to
    those that could use more. A run that the budget ends says `undecided` where it could not finish; started again in
    its folder with more it goes on.

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
    work.store.note("climb", asdict(climb) | {"ladder": list(climb.ladder)})
    end = None if budget is None else clock() + budget

    def effective(name: str) -> dict[str, Any]:
        claimed = work.store.run["variants"][name]["claimed"]
        return summarise(work.scores(name), climb, claimed, seed=work.seed, unfit=work.unfit(name))

    with contextlib.closing(work):
        try:
            while _round(work, climb, clock, end, lambda: work.summary(effective)):
                pass
            work.store.wait()
        finally:
            # Also on Ctrl-C: what has been found is summed up, and the run goes on from there when started again.
            summary = work.summary(effective)
    work.report()
    return summary


def _round(
    work: Evaluation, climb: Climb, clock: Callable[[], float], end: float | None, after: Callable[[], object]
) -> bool:
    """Go once through the variants that want more; False where there was none to go on with, or no time."""
    waiting = [variant for variant in work.variants if _wanted(work.scores(variant.name), climb)]
    went_on = False
    for index, variant in enumerate(waiting):
        # What to ask next depends on the answers so far, so several processes share out whole variants.
        with work.claim(variant.name) as mine:
            scores = work.scores(variant.name)  # another process may have been at it
            if not mine or not _wanted(scores, climb) or (end is not None and clock() >= end):
                continue
            left = math.ceil((len(waiting) - index) / here().count)
            until = None if end is None else clock() + (end - clock()) / left
            with work.as_variant(variant):
                _search(work, variant, climb, clock, until)
        after()
        went_on = True
    return went_on


def _wanted(scores: Scores, climb: Climb) -> bool:
    return any(judge(scores, climb, rule).ask is not None for rule in RULES)


def _search(work: Evaluation, variant: Variant, climb: Climb, clock: Callable[[], float], until: float | None) -> None:
    scores = work.scores(variant.name)
    for rule in RULES:
        while (ask := judge(scores, climb, rule).ask) is not None and (until is None or clock() < until):
            length, trial = ask
            scores.setdefault(length, []).append(work.ask(variant, length, trial))
