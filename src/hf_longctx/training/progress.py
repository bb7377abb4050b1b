"""What a run will take, and one line a step on stderr: loss, tokens a second, time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from transformers import TrainerCallback

from .recipes import Stage


def say(text: str) -> None:
    """A line on stderr, seen at once."""
    print(text, file=sys.stderr, flush=True)


def forecast(
    stages: Sequence[Stage], *, processes: int, done: int = 0, seconds: float | None = None, passes: int = 4
) -> str:
    """What training is about to do, and about how long it takes, before the first step tells.

    Args:
        stages: of the run.
        done: steps that a run which goes on has behind it, all stages together.
        processes: that share each batch.
        seconds: that a process took to read a token, forward; None where that was not measured.
        passes: readings that a training step is worth: forward, backward (two), and forward again where activations
            are checkpointed.

    >>> one = Stage(window=16384, length=2048, rope="yarn:2", steps=16, batch=2, learning_rate=1e-4)
    >>> forecast([one], processes=1, seconds=0.005)
    'training: 16 steps, 65,536 tokens, by 1 process; about 0:22:00 by the time that reading took'
    >>> forecast([one, one], processes=2, done=20)
    'training: 12 steps of 32 are left, 49,152 tokens, by 2 processes'
    """
    steps = sum(one.steps for one in stages)
    tokens, behind = 0, done
    for one in stages:
        tokens += max(one.steps - behind, 0) * one.batch * one.length
        behind = max(behind - one.steps, 0)
    count = f"{steps - done:,} steps of {steps:,} are left" if done else f"{steps:,} steps"
    said = f"training: {count}, {tokens:,} tokens, by {processes} process{'es' if processes > 1 else ''}"
    if seconds is None:
        return said
    minutes = max(1, round(tokens * seconds * passes / processes / 60))
    return f"{said}; about {timedelta(minutes=minutes)} by the time that reading took"


@dataclass
class Progress(TrainerCallback):
    """Writes how training goes.

    Attributes:
        tokens: of an optimizer step, over all devices.
        stage: such as `stage 1 of 2`; empty for a single one.
    """

    tokens: int
    stage: str = ""
    _last: tuple[float, int] | None = field(default=None, repr=False)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The clock starts with the first step, when a run that goes on has passed over the rows that it has seen."""
        if self._last is None:
            self._last = (time.perf_counter(), state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """One line for what was logged."""
        if not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        assert logs is not None
        assert self._last is not None
        now, (then, before) = time.perf_counter(), self._last
        steps = max(1, state.global_step - before)
        seconds = (now - then) / steps
        self._last = (now, state.global_step)
        logs["tokens_per_second"] = self.tokens / seconds
        state.log_history[-1]["tokens_per_second"] = round(self.tokens / seconds, 1)
        left = timedelta(seconds=round(seconds * (state.max_steps - state.global_step)))
        say(
            f"{self.stage}step {state.global_step}/{state.max_steps}  loss {logs['loss']:.4f}  "
            f"gradient {logs.get('grad_norm', float('nan')):.2f}  {self.tokens / seconds:,.0f} tokens/s  {left} left"
        )
