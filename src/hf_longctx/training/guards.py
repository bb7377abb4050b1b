"""What stops a training run that has gone wrong, before it wastes a night: each says what happened and what to do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from hf_longctx.hf.rotary import frequencies, rotary_modules

from .checkpoints import WHOLE, check_disk


def rope_state(model: Any) -> list[torch.Tensor]:
    """A copy of the frequencies that a model computes with."""
    return [frequencies(module).detach().clone() for module in rotary_modules(model)]


def check_changed(model: Any, before: list[torch.Tensor], rope: str) -> None:
    """Refuse to train a model whose frequencies are the old ones, whatever its config says.

    Raises:
        ValueError: they have not changed.
    """
    now = rope_state(model)
    if not now or all(torch.equal(x.cpu(), y.cpu()) for x, y in zip(before, now)):
        raise ValueError(
            f"rope {rope} is set, but the model still computes with its old frequencies: training it would teach "
            "nothing; report this model class, and extend another"
        )


def first_loss_limit(reference: float, words: int) -> float:
    """The loss of the first step above which the scaling is taken for broken.

    Half the way from the model's own loss on short text to guessing among all words, and at least one nat above it. A
    scaling that trains well starts far below (Qwen3-8B under YaRN of factor 32: 4.3, unscaled 10.6, guessing 11.9).

    >>> round(first_loss_limit(2.2, 151936), 2), round(first_loss_limit(5.5, 258), 2)
    (7.07, 6.5)
    """
    return reference + max(1.0, (math.log(words) - reference) / 2)


@dataclass
class Guards(TrainerCallback):
    """Watches a training run.

    Attributes:
        first_limit: the highest loss that the first step may have; None where a run goes on.
        reference: the model's loss on short text, for the message.
        clip: what the trainer clips gradients to.
        checkpoint_bytes: of one checkpoint.
        rope: the scaling, for the message.
    """

    first_limit: float | None
    reference: float
    clip: float
    checkpoint_bytes: int
    rope: str

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """After clipping, before the weights change: gradients are finite and not above the norm."""
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if not gradients:  # a sharded optimizer keeps them to itself
            return
        total: Any = torch.nn.utils.get_total_norm(gradients)
        norm = float(total.full_tensor() if hasattr(total, "full_tensor") else total)
        step = state.global_step + 1
        if not math.isfinite(norm):
            raise ValueError(
                f"step {step}: the gradient is {norm}, so the loss was not finite; no weight was changed. Lower the "
                f"learning rate ({args.learning_rate:g}), or train in float32; the same command goes on from the last "
                "checkpoint"
            )
        if self.clip and norm > self.clip * 1.01:
            raise ValueError(
                f"step {step}: the gradient's norm is {norm:g} after clipping to {self.clip:g}: clipping did not run; "
                "report how training was launched"
            )

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """The losses that are logged: finite, and the first not far above that on short text."""
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            raise ValueError(
                f"step {state.global_step}: the loss is {loss}. Lower the learning rate ({args.learning_rate:g}), or "
                "train in float32; the same command goes on from the last checkpoint"
            )
        if state.global_step == 1 and self.first_limit is not None and loss > self.first_limit:
            raise ValueError(
                f"step 1: the loss is {loss:.2f} under rope {self.rope}, and {self.reference:.2f} on text within the "
                f"trained window, limit {self.first_limit:.2f}: the scaling breaks the model. Check --rope and --to, "
                "choose yarn, or a smaller factor in stages; --max-first-loss sets another limit"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before a checkpoint is written: is there room?"""
        if control.should_save and state.is_world_process_zero:
            check_disk(Path(args.output_dir), self.checkpoint_bytes, f"the checkpoint of step {state.global_step}")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After a checkpoint is written: all of it is there."""
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / WHOLE).touch()
