"""The stages of a distillation as data: what each one lowers, how long, and their text form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .recipes import Recipe

#: What a stage may lower, in the order in which stages usually come, and what it is.
OBJECTIVES: Mapping[str, str] = MappingProxyType(
    {
        "align": "each mixer's error against the attention that it replaces, on the teacher's hidden states",
        "match": "KL of the teacher's next-token probabilities against the student's",
        "text": "cross entropy of the text",
    }
)
#: Highest learning rate of each.
RATES: Mapping[str, float] = MappingProxyType({"align": 1e-3, "match": 5e-4, "text": 2e-4})
DEFAULT = "align:400,match:400"
#: The optimizer of every stage. The recipe's other fields are for `extend`.
OPTIMIZER = Recipe(
    name="distill",
    source="the order of MOHAWK (Bick et al. 2024, arXiv 2408.10189): align each layer, then match the logits",
    rope="none",
    tune="mixers",
    stages=(),
    schedule="cosine",
    warmup=10,
    betas=(0.9, 0.95),
    clip=1.0,
)


@dataclass(frozen=True)
class Phase:
    """One stage.

    Attributes:
        objective: one of `OBJECTIVES`.
        steps: optimizer steps.
        batch: sequences of an optimizer step, over all devices.
        length: tokens of a sequence.
        learning_rate: the highest.
    """

    objective: str
    steps: int
    batch: int
    length: int
    learning_rate: float


def read_phases(text: str, *, batch: int, length: int) -> tuple[Phase, ...]:
    """Read `NAME:STEPS` or `NAME:STEPS:LEARNING_RATE`, joined by commas, in the order of training.

    Args:
        text: such as `align:400,match:400:3e-4`.
        batch: sequences of an optimizer step.
        length: tokens of a sequence.

    Raises:
        ValueError: an unknown objective, numbers that cannot be, or a batch or length too small.

    >>> read_phases("align:3,match:2:1e-4", batch=4, length=128)[1]
    Phase(objective='match', steps=2, batch=4, length=128, learning_rate=0.0001)
    """
    for name, value, least in (("batch", batch, 1), ("length", length, 2)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is {value!r}: it must be a whole number, at least {least}")
    phases = []
    for part in "".join(text.split()).split(","):
        objective, *numbers = part.split(":")
        if objective not in OBJECTIVES or not 1 <= len(numbers) <= 2:
            raise ValueError(
                f"stages {text!r}: cannot read {part!r}; write OBJECTIVE:STEPS or OBJECTIVE:STEPS:LEARNING_RATE, with "
                f"the objectives {', '.join(OBJECTIVES)}, such as {DEFAULT}"
            )
        try:
            steps, rate = int(numbers[0]), float(numbers[1]) if len(numbers) == 2 else RATES[objective]
        except ValueError:
            steps, rate = 0, math.nan
        if steps < 1 or not 0 < rate < math.inf:
            raise ValueError(
                f"stages {text!r}: {part!r} needs at least 1 step and a learning rate above 0, such as {objective}:400"
                f":{RATES[objective]:g}"
            )
        phases.append(Phase(objective, steps, batch, length, rate))
    return tuple(phases)
