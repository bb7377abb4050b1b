"""How to train a longer window: the papers' settings as data, and the stages that they come to for a model.

A recipe says how; the model and the window asked for say how far. `plan_stages` turns both into stages, each with its
window, sequence length, RoPE, steps, batch and learning rate.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from hf_longctx.hf.rotary import RopeGeometry
from hf_longctx.hf.round_trip import check_rope
from hf_longctx.rope import NTK, Scaling, parse
from hf_longctx.rope.text import read_length

TUNES = ("full", "lora", "lora-plus")


@dataclass(frozen=True)
class Step:
    """One stage of a recipe, before a model and a window are known.

    Attributes:
        steps: optimizer steps.
        window: share of the window asked for that this stage reaches; or tokens, where the recipe has fixed ones.
        length: share of the window asked for that a training sequence has; or tokens.
        theta: rope_theta of the stage, for recipes that raise it by hand instead of scaling.
        batch: sequences of an optimizer step, where it differs from the recipe's.
        learning_rate: where it differs from the recipe's.
    """

    steps: int
    window: float = 1.0
    length: float = 1.0
    theta: float | None = None
    batch: int | None = None
    learning_rate: float | None = None


@dataclass(frozen=True)
class Recipe:
    """Settings of one paper or repository.

    Attributes:
        name: what the command line calls it.
        source: where the numbers are from.
        rope: RoPE method, without a factor.
        tune: `full`, `lora` (attention projections) or `lora-plus` (those, embeddings and norms).
        stages: one after the other.
        factor: the window over the trained length, where the recipe is for one only.
        learning_rate: the highest.
        schedule: transformers' name of the learning rate's course.
        warmup: steps at the beginning, at most a tenth of all.
        betas: of AdamW.
        weight_decay: of AdamW.
        clip: largest norm of the gradient.
        batch: sequences of an optimizer step, over all devices.
        rank: of LoRA.
        alpha: of LoRA.
    """

    name: str
    source: str
    rope: str
    tune: str
    stages: tuple[Step, ...]
    factor: float | None = None
    learning_rate: float = 2e-5
    schedule: str = "constant_with_warmup"
    warmup: int = 20
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float = 1.0
    batch: int = 64
    rank: int = 8
    alpha: int = 16


@dataclass(frozen=True)
class Stage:
    """One stage of training a certain model.

    Attributes:
        window: tokens that the model is for after it: its max_position_embeddings.
        length: tokens of a training sequence.
        rope: scaling in text form, its factor counted from the trained length.
        steps: optimizer steps.
        batch: sequences of an optimizer step, over all devices.
        learning_rate: the highest.
    """

    window: int
    length: int
    rope: str
    steps: int
    batch: int
    learning_rate: float


_ALL = (
    Recipe(
        name="default",
        source="YaRN's optimizer (arXiv 2309.00071, section 4.1) and LongLoRA's trained parameters (arXiv 2309.12307)",
        rope="yarn",
        tune="lora-plus",
        stages=(Step(400),),
        learning_rate=1e-4,
        batch=16,
    ),
    Recipe(
        name="yarn-16",
        source="Peng et al. 2023, arXiv 2309.00071, section 4.1: Llama 2 from 4K to 64K, on sequences of 64K",
        rope="yarn",
        tune="full",
        factor=16,
        stages=(Step(400),),
    ),
    Recipe(
        name="yarn-32",
        source="Peng et al. 2023, arXiv 2309.00071, section 4.1: 200 more steps at twice the factor, still on 64K",
        rope="yarn",
        tune="full",
        factor=32,
        stages=(Step(400, window=1 / 2, length=1 / 2), Step(200, length=1 / 2)),
    ),
    Recipe(
        name="linear-pi",
        source="Chen et al. 2023, arXiv 2306.15595, section 3.1 (batch and optimizer from memory): LLaMA 7B",
        rope="linear",
        tune="full",
        stages=(Step(1000),),
    ),
    Recipe(
        name="longlora",
        source="Chen et al. 2023, arXiv 2309.12307, section 4.1: LoRA with embeddings and norms, linear scaling",
        rope="linear",
        tune="lora-plus",
        stages=(Step(1000),),
    ),
    Recipe(
        name="easycontext",
        source="jzhang38/EasyContext, EasyContext-1M-Llama-2-7B.sh: theta raised in stages, 1M tokens a step",
        rope="theta",
        tune="full",
        warmup=0,
        stages=(
            Step(1000, window=32768, length=32768, theta=1e6, batch=32),
            Step(1000, window=65536, length=65536, theta=5e6, batch=16),
            Step(500, window=256000, length=256000, theta=1e7, batch=4),
            Step(500, window=256000, length=256000, theta=2.5e7, batch=4),
            Step(150, window=256000, length=256000, theta=5e7, batch=4),
            Step(300, window=512000, length=512000, theta=1e8, batch=2),
            Step(90, window=512000, length=512000, theta=2.5e8, batch=2, learning_rate=1e-5),
        ),
    ),
)

RECIPES: Mapping[str, Recipe] = MappingProxyType({recipe.name: recipe for recipe in _ALL})
"""The recipes by name."""


def find_recipe(name: str | Recipe) -> Recipe:
    """The recipe of that name; one that is a recipe already is returned as it is.

    Raises:
        ValueError: no such recipe.
    """
    if isinstance(name, Recipe):
        return name
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"recipe {name!r} does not exist: {hint}choose one of {', '.join(RECIPES)}")
    return RECIPES[name]


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
        ValueError: no window given, one that extends nothing, windows that disagree, a method that follows the length.
    """
    if isinstance(rope, Scaling):
        check_rope(rope)
    method = recipe.rope if rope is None else str(rope)
    fixed = recipe.stages[0].theta is not None and rope is None
    if fixed and (stages is not None or to is not None):
        raise ValueError(
            f"recipe {recipe.name!r} has windows and thetas of its own, up to {recipe.stages[-1].window:,.0f} tokens: "
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
    if steps is not None:
        if steps < len(planned):
            raise ValueError(f"steps is {steps}: each of {len(planned)} stages needs at least one")
        planned = _shared_out(planned, steps)
    result = []
    for one in planned:
        window = round(one.window * target) if one.window <= 1 else round(one.window)
        own = round(one.length * target) if one.length <= 1 else round(one.length)
        result.append(
            Stage(
                window=window,
                length=length or own,
                rope=_theta(one.theta, numbers) if fixed and one.theta else _scaling(method, window, numbers, target),
                steps=one.steps,
                batch=batch or one.batch or recipe.batch,
                learning_rate=learning_rate or one.learning_rate or recipe.learning_rate,
            )
        )
    for stage in result:
        if stage.length > stage.window:
            raise ValueError(
                f"length is {stage.length}, longer than the window of {stage.window} that is trained: choose a "
                "shorter one"
            )
    return tuple(result)


def _shared_out(planned: tuple[Step, ...], steps: int) -> tuple[Step, ...]:
    """The same stages with `steps` in all, in proportion, at least one each."""
    total = sum(one.steps for one in planned)
    counts = [max(1, one.steps * steps // total) for one in planned]
    counts[-1] = max(1, steps - sum(counts[:-1]))
    return tuple(dataclasses.replace(one, steps=count) for one, count in zip(planned, counts))


def _target(recipe: Recipe, numbers: RopeGeometry, method: str, stages: str | None, fixed: bool) -> int:
    if fixed:
        return round(recipe.stages[-1].window)
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


def _theta(theta: float | None, numbers: RopeGeometry) -> str:
    """A raised rope_theta as the fixed NTK scaling that it is."""
    assert theta is not None
    if theta <= numbers.base:
        raise ValueError(
            f"rope_theta is {numbers.base:g} already, and the recipe raises it to {theta:g}: it does not fit this "
            "model; choose another recipe"
        )
    return str(NTK((theta / numbers.base) ** ((numbers.dim - 2) / numbers.dim)))
