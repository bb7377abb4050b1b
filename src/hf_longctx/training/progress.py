"""One line a step on stderr: loss, tokens a second, time left."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from transformers import TrainerCallback


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

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The clock starts."""
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
        print(
            f"{self.stage}step {state.global_step}/{state.max_steps}  loss {logs['loss']:.4f}  "
            f"gradient {logs.get('grad_norm', float('nan')):.2f}  {self.tokens / seconds:,.0f} tokens/s  {left} left",
            file=sys.stderr,
            flush=True,
        )
