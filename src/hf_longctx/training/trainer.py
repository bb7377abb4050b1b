"""transformers' Trainer, set up for a stage: its arguments in one place, and two things that it has no name for."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, Trainer, TrainingArguments

from .checkpoints import KEPT
from .guards import Guards
from .phases import Phase
from .progress import Progress
from .recipes import Recipe, Stage

logger = logging.getLogger(__name__)


class ExtendTrainer(Trainer):
    """Trains on packed sequences; loads a finished stage's weights."""

    def load_weights(self, checkpoint: Path) -> None:
        """The weights of a checkpoint, without optimizer and data."""
        self._load_from_checkpoint(str(checkpoint))

    @staticmethod
    def log_of(checkpoint: Path) -> list[dict[str, Any]]:
        """The losses that a checkpoint has a record of."""
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        return [row for row in state["log_history"] if "loss" in row]


@dataclass(frozen=True)
class Setup:
    """How a stage is trained.

    Attributes:
        recipe: the optimizer's settings.
        stage: steps, lengths, learning rate.
        out: where checkpoints go.
        save_every: steps between checkpoints; None is a tenth of the stage, at most 100.
        report_to: where the trainer logs to.
        seed: of the trainer.
        micro_batch: sequences that a process computes at once.
        accumulation: times before an optimizer step.
        checkpointing: whether activations are computed again in the backward pass.
        autocast: whether to compute in bfloat16.
        on_cpu: whether to stay off CUDA.
    """

    recipe: Recipe
    stage: Stage | Phase
    out: Path
    save_every: int | None
    report_to: str
    seed: int
    micro_batch: int = 1
    accumulation: int = 1
    checkpointing: bool = True
    autocast: bool = False
    on_cpu: bool = True

    def arguments(self) -> TrainingArguments:
        """What it is to transformers' Trainer.

        Raises:
            ValueError: a recipe with a setting that transformers does not know.
        """
        recipe, stage = self.recipe, self.stage
        arguments = TrainingArguments(
            output_dir=str(self.out),
            max_steps=stage.steps,
            per_device_train_batch_size=self.micro_batch,
            gradient_accumulation_steps=self.accumulation,
            learning_rate=stage.learning_rate,
            lr_scheduler_type=recipe.schedule,
            warmup_steps=min(recipe.warmup, stage.steps // 10),  # recipes are written for hundreds of steps
            optim="adamw_torch",
            adam_beta1=recipe.betas[0],
            adam_beta2=recipe.betas[1],
            weight_decay=recipe.weight_decay,
            max_grad_norm=recipe.clip,
            bf16=self.autocast,
            use_cpu=self.on_cpu,
            activation_checkpointing=self.checkpointing,
            activation_checkpointing_kwargs={"use_reentrant": False} if self.checkpointing else None,
            logging_steps=1,
            logging_nan_inf_filter=False,  # it would put an old loss in the place of one that is not a number
            save_steps=min(max(stage.steps // 10, 1), 100) if self.save_every is None else self.save_every,
            save_total_limit=KEPT,
            remove_unused_columns=False,
            report_to=self.report_to,
            disable_tqdm=True,
            seed=self.seed,
            dataloader_pin_memory=not self.on_cpu,
        )
        if arguments.n_gpu > 1:
            # Without a launcher the trainer would spread each batch over all of them (DataParallel): another batch
            # size than was asked for, and a student whose copies share one teacher.
            logger.warning(
                "training on one of %d GPUs: start it with `accelerate launch` to use them all", arguments.n_gpu
            )
            arguments._n_gpu = 1
        return arguments


def make_trainer(model: Any, dataset: Any, setup: Setup, *, guards: Guards, progress: str | None) -> ExtendTrainer:
    """A trainer for one stage.

    Args:
        model: what is trained: a PEFT model, a transformers one, or the student of a distillation.
        dataset: of packed sequences, without end.
        setup: how.
        guards: what stops it.
        progress: prefix of a line a step; None prints none.
    """
    callbacks: list[Any] = [guards]
    if progress is not None:
        callbacks.append(Progress(setup.stage.batch * setup.stage.length, progress))
    trainer = ExtendTrainer(model=model, args=setup.arguments(), train_dataset=dataset, callbacks=callbacks)
    trainer.remove_callback(PrinterCallback)
    return trainer
