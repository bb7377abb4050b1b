"""The stages that a recipe comes to for a model and a window, checked before anything is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

from hf_longctx.hf.rotary import RopeGeometry
from hf_longctx.hf.round_trip import check_rope
from hf_longctx.rope import NTK, Scaling, parse
from hf_longctx.rope.text import read_length

from .checks import positive, whole
from .recipes import Recipe, Stage, Step

_T = TypeVar("_T")


def parse_steps(text: str) -> tuple[tuple[int, int], ...]:
    """Read stages from their text form, `WINDOW:STEPS` with commas between them.

    Raises:
        ValueError: anything else.

    >>> parse_steps("16k:100,32k:50")
    ((16384, 100), (32768, 50))
    """
    try:
        pairs = tuple(
            (read_length(window.strip()), int(steps))
            for window, steps in (part.split(":") for part in text.split(","))
        )
    except ValueError:
        pairs = ()
    if not pairs or any(steps < 1 or window < 1 for window, steps in pairs):
        raise ValueError(
            f"stages {text!r} cannot be read: write each as WINDOW:STEPS with commas between them, such as "
            "16k:100,32k:50"
        )
    return pairs


def plan_stages(
    recipe: Recipe,
    numbers: RopeGeometry,
    *,
    to: int | None = None,
    rope: str | Scaling | None = None,
    stages: str | None = None,
    steps: int | None = None,
    length: int | None = None,
    batch: int | None = None,
    learning_rate: float | None = None,
) -> tuple[Stage, ...]:
    """What a recipe comes to for a model.

    Args:
        recipe: how to train.
        numbers: the model's RoPE.
        to: the window asked for, in tokens; None takes it from `rope`'s or the recipe's factor.
        rope: a method in place of the recipe's, with or without a factor.
        stages: in place of the recipe's, as `parse_steps` reads them.
        steps: in place of the recipe's, all stages together, shared out as the recipe does.
        length: tokens of a training sequence in place of the recipe's, in every stage.
        batch: in place of the recipe's.
        learning_rate: in place of the recipe's.

    Returns:
        The stages; the last one's window is the window asked for.

    Raises:
        ValueError: a number that cannot be, no window given, one that extends nothing or less than the one before,
            windows that disagree, a method that follows the length.
    """
    for name, value in (("steps", steps), ("length", length), ("batch", batch)):
        whole(name, value)
    positive("learning_rate", learning_rate)
    if isinstance(rope, Scaling):
        check_rope(rope)
    method = recipe.rope if rope is None else str(rope)
    fixed = recipe.stages[0].theta is not None and rope is None
    if fixed and (stages is not None or to is not None):
        raise ValueError(
            f"recipe {recipe.name!r} has windows and thetas of its own, up to {recipe.stages[-1].window:,} tokens: "
            "leave --to and --stages out, or name a method with --rope"
        )
    if recipe.stages[0].theta is not None and rope is not None:
        recipe = dataclasses.replace(recipe, stages=(Step(sum(one.steps for one in recipe.stages)),))
    target = to if to is not None else _target(recipe, numbers, method, stages, fixed)
    if target <= numbers.max_positions:
        raise ValueError(
            f"--to {target} extends nothing: the model is for {numbers.max_positions} tokens already; give more"
        )
    if stages is not None:
        pairs = parse_steps(stages)
        if pairs[-1][0] != target:
            raise ValueError(f"stages {stages!r} end at {pairs[-1][0]}, but --to is {target}: make them agree")
        planned = tuple(Step(count, window=window, length=window) for window, count in pairs)
    else:
        planned = recipe.stages
    for one in planned:
        whole(f"steps of a stage of recipe {recipe.name!r}", one.steps)
    if steps is not None:
        if steps < len(planned):
            raise ValueError(f"steps is {steps}: each of {len(planned)} stages needs at least one")
        planned = _shared_out(planned, steps)
    windows = [_tokens(one.window, one.share, target) for one in planned]
    # A theta may rise within the window that a model claims; a factor that claims no more than the model does may not.
    whose = f"recipe {recipe.name!r}" if stages is None else f"stages {stages!r}"
    _check_windows(windows, numbers.trained if fixed else numbers.max_positions, whose)
    result = []
    for one, window in zip(planned, windows):
        own = _tokens(one.length, one.length_share, target)
        result.append(
            Stage(
                window=window,
                length=_first(length, own),
                rope=_theta(one.theta, numbers) if fixed and one.theta else _scaling(method, window, numbers, target),
                steps=one.steps,
                batch=_first(batch, one.batch, recipe.batch),
                learning_rate=_first(learning_rate, one.learning_rate, recipe.learning_rate),
            )
        )
    for stage in result:
        for name in ("length", "batch"):
            whole(f"{name} of recipe {recipe.name!r}", getattr(stage, name))
        positive(f"learning_rate of recipe {recipe.name!r}", stage.learning_rate)
        if stage.length > stage.window:
            raise ValueError(
                f"length is {stage.length}, longer than the window of {stage.window} that is trained: choose a "
                "shorter one"
            )
    return tuple(result)


def _first(*given: _T | None) -> _T:
    """The first that is given; 0 is a value, and an error of its own."""
    return next(one for one in given if one is not None)


def _tokens(fixed: int | None, share: float, target: int) -> int:
    return fixed if fixed is not None else round(share * target)


def _check_windows(windows: Sequence[int], claimed: int, whose: str) -> None:
    """Every stage must reach further than the model does, and none less far than the one before."""
    for before, window in zip((claimed, *windows), windows):
        if window <= claimed:
            raise ValueError(
                f"{whose}: a stage with a window of {window} extends nothing, since the model is for {claimed} tokens "
                "already; leave it out, or make the window longer"
            )
        if window < before:
            raise ValueError(
                f"{whose}: a stage with a window of {window} comes after one of {before}, and would take back what "
                "was learned; put the windows in rising order"
            )


def _shared_out(planned: tuple[Step, ...], steps: int) -> tuple[Step, ...]:
    """The same stages with `steps` in all, in proportion, at least one each; what does not divide is the largest's."""
    total = sum(one.steps for one in planned)
    counts = [max(1, one.steps * steps // total) for one in planned]
    while (missing := steps - sum(counts)) != 0:
        counts[counts.index(max(counts))] += 1 if missing > 0 else -1
    return tuple(dataclasses.replace(one, steps=count) for one, count in zip(planned, counts))


def _target(recipe: Recipe, numbers: RopeGeometry, method: str, stages: str | None, fixed: bool) -> int:
    if fixed:
        return _tokens(recipe.stages[-1].window, 1.0, numbers.max_positions)
    if stages is not None:
        return parse_steps(stages)[-1][0]
    if _extent(method):
        return parse(method).max_positions(numbers.trained, numbers.max_positions)
    if recipe.factor is not None:
        return round(recipe.factor * numbers.trained)
    raise ValueError(
        f"no window is given: name it with --to 32k, or a factor with --rope {method}:4 (the model was trained on "
        f"{numbers.trained} tokens)"
    )


def _extent(method: str) -> list[str]:
    """The parts of a scaling's text that say how far: a bare number, `factor=` or `to=`."""
    parts = [part.strip() for part in method.partition(":")[2].split(",") if part.strip()]
    return [part for part in parts if "=" not in part or part.split("=")[0].strip() in ("to", "factor")]


def _scaling(method: str, window: int, numbers: RopeGeometry, target: int) -> str:
    """A scaling for one stage's window, in text form with its factor."""
    name, _, rest = method.partition(":")
    extent = _extent(method)
    if extent:
        given = parse(method).max_positions(numbers.trained, numbers.max_positions)
        if given != target:
            raise ValueError(
                f"rope {method!r} makes a window of {given} of the trained {numbers.trained}, but --to is {target}: "
                "give one of them, or make them agree"
            )
    options = [part.strip() for part in rest.split(",") if part.strip() and part.strip() not in extent]
    if parse(name if name in ("none", "dynamic") else f"{name}:2").length_dependent or name == "none":
        raise ValueError(
            f"rope {method!r} cannot be trained to a window: its frequencies are not fixed by one; choose yarn, "
            "linear, ntk, by-parts or llama3"
        )
    return str(parse(f"{name}:{','.join([f'to={window}', *options])}").resolve(numbers.trained))


def _theta(theta: float, numbers: RopeGeometry) -> str:
    """A raised rope_theta as the fixed NTK scaling that it is."""
    if theta <= numbers.base:
        raise ValueError(
            f"rope_theta is {numbers.base:g} already, and the recipe raises it to {theta:g}: it does not fit this "
            "model; choose another recipe"
        )
    return str(NTK((theta / numbers.base) ** ((numbers.dim - 2) / numbers.dim)))
