"""transformers' Trainer, set up for a stage: its arguments in one place, and two things that it has no name for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, Trainer, TrainingArguments

from .checkpoints import KEPT
from .guards import Guards
from .phases import Phase
from .progress import Progress
from .recipes import Recipe, Stage


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


def make_trainer(
    model: Any,
    dataset: Any,
    recipe: Recipe,
    stage: Stage | Phase,
    *,
    out: Path,
    guards: Guards,
    micro_batch: int,
    accumulation: int,
    checkpointing: bool,
    autocast: bool,
    on_cpu: bool,
    save_every: int | None,
    report_to: str,
    progress: str | None,
    seed: int,
) -> ExtendTrainer:
    """A trainer for one stage.

    Args:
        model: what is trained: a PEFT model, a transformers one, or the student of a distillation.
        dataset: of packed sequences, without end.
        recipe: the optimizer's settings.
        stage: steps, lengths, learning rate.
        out: where checkpoints go.
        guards: what stops it.
        micro_batch: sequences that a process computes at once.
        accumulation: times before an optimizer step.
        checkpointing: whether activations are computed again in the backward pass.
        autocast: whether to compute in bfloat16.
        on_cpu: whether to stay off CUDA.
        save_every: steps between checkpoints.
        report_to: where the trainer logs to.
        progress: prefix of a line a step; None prints none.
        seed: of the trainer.
    """
    arguments = training_arguments(
        recipe, stage, out=out, micro_batch=micro_batch, accumulation=accumulation, checkpointing=checkpointing,
        autocast=autocast, on_cpu=on_cpu, save_every=save_every, report_to=report_to, seed=seed,
    )  # fmt: skip
    callbacks: list[Any] = [guards]
    if progress is not None:
        callbacks.append(Progress(stage.batch * stage.length, progress))
    trainer = ExtendTrainer(model=model, args=arguments, train_dataset=dataset, callbacks=callbacks)
    trainer.remove_callback(PrinterCallback)
    return trainer


def training_arguments(
    recipe: Recipe,
    stage: Stage | Phase,
    *,
    out: Path,
    micro_batch: int,
    accumulation: int,
    checkpointing: bool,
    autocast: bool,
    on_cpu: bool,
    save_every: int | None,
    report_to: str,
    seed: int,
) -> TrainingArguments:
    """The trainer's arguments for one stage; what they are is said at `make_trainer`.

    Raises:
        ValueError: a recipe with a setting that transformers does not know.
    """
    return TrainingArguments(
        output_dir=str(out),
        max_steps=stage.steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=stage.learning_rate,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=min(recipe.warmup, stage.steps // 10),  # recipes are written for hundreds of steps
        optim="adamw_torch",
        adam_beta1=recipe.betas[0],
        adam_beta2=recipe.betas[1],
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.clip,
        bf16=autocast,
        use_cpu=on_cpu,
        activation_checkpointing=checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would put an old loss in the place of one that is not a number
        save_steps=min(max(stage.steps // 10, 1), 100) if save_every is None else save_every,
        save_total_limit=KEPT,
        remove_unused_columns=False,
        report_to=report_to,
        disable_tqdm=True,
        seed=seed,
        dataloader_pin_memory=not on_cpu,
    )
