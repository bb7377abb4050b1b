"""How to train a longer window: the papers' settings as data.

A recipe says how; the model and the window asked for say how far. `stage_plan.plan_stages` turns both into stages,
each with its window, sequence length, RoPE, steps, batch and learning rate.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

TUNES = ("full", "lora", "lora-plus")


@dataclass(frozen=True)
class Step:
    """One stage of a recipe, before a model and a window are known.

    Attributes:
        steps: optimizer steps.
        share: of the window asked for that this stage reaches, above 0 and at most 1.
        length_share: of the window asked for that a training sequence has.
        window: tokens that it reaches instead, in a recipe whose windows are fixed.
        length: tokens of a training sequence instead.
        theta: rope_theta of the stage, for recipes that raise it by hand instead of scaling.
        batch: sequences of an optimizer step, where it differs from the recipe's.
        learning_rate: where it differs from the recipe's.
    """

    steps: int
    share: float = 1.0
    length_share: float = 1.0
    window: int | None = None
    length: int | None = None
    theta: float | None = None
    batch: int | None = None
    learning_rate: float | None = None


@dataclass(frozen=True)
class Recipe:
    """Settings of one paper or repository.

    What a source leaves open is ours. Of `linear-pi` that is the clipping and the constant rate after warming up; the
    paper warms up from a tenth of the rate, and transformers' schedule from 0.

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
    alpha: float = 16


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
        stages=(Step(400, share=1 / 2, length_share=1 / 2), Step(200, length_share=1 / 2)),
    ),
    Recipe(
        name="linear-pi",
        source="Chen et al. 2023, arXiv 2306.15595, section 3.1: LLaMA 7B and 13B from 2K to 8K; larger models "
        "got a rate of 1e-5, longer windows a batch of 128",
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
