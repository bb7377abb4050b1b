"""`extend`: from a model to one with a longer window, trained, measured before and after, and saved."""

from __future__ import annotations

import gc
import importlib.metadata
import itertools
import logging
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_longctx.hf.adapters import save_adapter
from hf_longctx.hf.patching import is_patched, patch, unpatch
from hf_longctx.hf.rotary import geometry
from hf_longctx.hf.saving import settle_rope
from hf_longctx.rope import Scaling

from .card import write_card
from .checkpoints import KEPT, check_disk, drop_torn, whole_checkpoints
from .corpus import Corpus, open_corpus
from .dataset import PackedDataset, held_out_ids
from .recipes import Recipe, Stage, find_recipe, plan_stages
from .run_folder import RunFolder
from .tuning import check_tune, make_trainable, to_float32, trainable_bytes

logger = logging.getLogger(__name__)

#: Tokens of training text that the model's own loss is taken from.
_REFERENCE_TOKENS = 4096


def extend(
    model: Any,
    tokenizer: Any = None,
    *,
    data: str | Path,
    out: str | Path,
    to: int | None = None,
    rope: str | Scaling | None = None,
    recipe: str | Recipe = "default",
    tune: str | None = None,
    stages: str | None = None,
    steps: int | None = None,
    length: int | None = None,
    batch: int | None = None,
    micro_batch: int = 1,
    learning_rate: float | None = None,
    pose: bool = False,
    attention: str | None = None,
    text_field: str = "text",
    split: str = "train",
    seed: int = 0,
    checkpointing: bool = True,
    tile: bool = True,
    merge: bool = True,
    measure: bool = True,
    needle: tuple[int, ...] = (),
    max_first_loss: float | None = None,
    save_every: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    report_to: str = "none",
    progress: bool = True,
    model_name: str | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Extend a model's window: scale its RoPE, train it on long text, measure, and save.

    Documents are packed to exact length without attention or positions leaking between them. The loss never holds all
    logits, activations are checkpointed, and weights in bfloat16 are trained under autocast with what is trained in
    float32. Started again with the same settings, a killed run goes on, with the same losses step for step. Under
    `accelerate launch` the batch is shared by the processes.

    Args:
        model: hub id, local folder, `demo`, or a loaded causal language model that is not patched; changed in place.
        tokenizer: its tokenizer, where `model` is loaded.
        data: training text: `kjv`, `prose`, a folder or file of text or JSON lines, or a data set's name.
        out: folder for the result and what a killed run needs.
        to: the window asked for, in tokens.
        rope: method in place of the recipe's, such as `yarn`; with a factor, `to` may be left out.
        recipe: one of `RECIPES`, or one of your own.
        tune: `full`, `lora` or `lora-plus`, in place of the recipe's.
        stages: windows and steps one after the other, `16k:100,32k:50`.
        steps: optimizer steps in all.
        length: tokens of a training sequence; with `pose` the short one, by default the trained length.
        batch: sequences of an optimizer step, over all processes.
        micro_batch: sequences that a process computes at once.
        learning_rate: the highest.
        pose: position skipping: learn the window from short sequences.
        attention: pattern while training; the saved model attends in full. None takes full attention, by the engine.
        text_field: where a JSON line or a data set's row has its text.
        split: of a data set.
        seed: of data order, skips and LoRA's first weights.
        checkpointing: whether activations are computed again in the backward pass.
        tile: whether the loss is computed in tiles of rows.
        merge: whether LoRA is merged into the model that is saved; else only the adapter is.
        measure: whether perplexity by position is measured before and after.
        needle: lengths of a needle test before and after; empty for none.
        max_first_loss: the highest loss that the first step may have; None takes a limit from the model's own loss.
        save_every: steps between checkpoints; default a tenth of a stage, at most 100.
        dtype: of the weights, where `model` is a name. On CUDA the default is bfloat16 for LoRA, float32 for full.
        device: `cpu` or `cuda`, where `model` is a name.
        report_to: where the trainer logs to besides its own files, such as `tensorboard`.
        progress: whether to print a line a step on stderr.
        model_name: what the card calls the model; None takes the name it was loaded by.
        command: how the user started this; kept for the card.

    Returns:
        What `extend.json` says: `settings`, `stages` with their logs, `perplexity` of `stock`, `untrained`, `trained`.

    Raises:
        ValueError: settings that cannot work, before anything is trained; a folder with another run; training gone
            wrong.
        ModuleNotFoundError: a package is missing.
    """
    from hf_longctx.hf.loading import load_config

    how = find_recipe(recipe)
    tuned = tune or how.tune
    check_tune(tuned)
    named = isinstance(model, str)
    if not named and tokenizer is None:
        raise ValueError("tokenizer is None: give the loaded model's tokenizer, or the model by name")
    config = load_config(model) if named else model.config
    if getattr(config, "longctx", None) or (not named and is_patched(model)):
        raise ValueError(
            "the model is patched: extend starts from an ordinary one; call hf_longctx.unpatch(model) first, or name "
            "the checkpoint before it was patched"
        )
    numbers = geometry(config)
    if pose and length is None:
        length = numbers.trained
    planned = plan_stages(
        how, numbers, to=to, rope=rope, stages=stages, steps=steps, length=length, batch=batch,
        learning_rate=learning_rate,
    )  # fmt: skip
    corpus = open_corpus(data, field=text_field, split=split)

    from accelerate import PartialState

    on_cpu = str(device) == "cpu" if named else model.device.type == "cpu"
    processes = PartialState(cpu=on_cpu) if on_cpu else PartialState()
    for stage in planned:
        _accumulation(stage, micro_batch, processes.num_processes)
    name = model_name or (model if named else (config._name_or_path or type(model).__name__))
    settings = {
        "model": name, "data": corpus.name, "text_field": text_field, "split": split, "recipe": how.name,
        "tune": tuned, "rank": how.rank, "alpha": how.alpha, "stages": [asdict(stage) for stage in planned],
        "pose": pose, "attention": attention, "seed": seed, "merge": merge, "tile": tile,
    }  # fmt: skip
    # Read by all before one writes.
    if (Path(out) / "extend.json").is_file() or not processes.is_main_process:
        processes.wait_for_everyone()
        run = RunFolder(Path(out), settings, writes=processes.is_main_process)
    else:
        run = RunFolder(Path(out), settings)
        processes.wait_for_everyone()
    if run.record["finished"]:
        return run.record
    run.save(
        source=how.source,
        data=corpus.label,
        trained_length=numbers.trained,
        command=command,
        versions={one: importlib.metadata.version(one) for one in ("hf_longctx", "torch", "transformers")},
    )

    if named:
        model, tokenizer = _load(model, tuned, dtype, device, processes)
    was_cached = model.config.use_cache
    work = _Work(run, model, tokenizer, corpus, how, tuned, numbers.trained, processes)
    work.before(planned, measure=measure, needle=needle)
    adapted = work.prepare(planned[0], attention, pose, tile=tile)
    work.train(
        adapted, planned, attention=attention, pose=pose, micro_batch=micro_batch, checkpointing=checkpointing,
        max_first_loss=max_first_loss, save_every=save_every, report_to=report_to, progress=progress,
    )  # fmt: skip
    model.config.use_cache = was_cached
    work.save(adapted, planned[-1], merge=merge)
    work.after(planned[-1], measure=measure, needle=needle)
    return run.record


def _accumulation(stage: Stage, micro_batch: int, processes: int) -> int:
    """How many times each process computes before an optimizer step.

    Raises:
        ValueError: a batch that the processes cannot share evenly.
    """
    at_once = micro_batch * processes
    if micro_batch < 1 or stage.batch % at_once:
        raise ValueError(
            f"batch is {stage.batch}, which {processes} process(es) with micro_batch={micro_batch} cannot share: "
            f"choose a multiple of {max(at_once, 1)}"
        )
    return stage.batch // at_once


def _load(name: str, tuned: str, dtype: str | None, device: str | None, processes: Any) -> tuple[Any, Any]:
    import torch

    from hf_longctx.hf.loading import load_model

    where = device or str(processes.device)
    if dtype is None and torch.device(where).type == "cuda":
        # Updates of a full fine-tune vanish in bfloat16, so the weights stay in float32 under autocast.
        dtype = "float32" if tuned == "full" else "bfloat16"
    return load_model(name, dtype=dtype, device=where)


class _Work:
    """One run: the model, its data, and the folder that remembers how far it is."""

    def __init__(
        self,
        run: RunFolder,
        model: Any,
        tokenizer: Any,
        corpus: Corpus,
        recipe: Recipe,
        tuned: str,
        trained: int,
        processes: Any,
    ) -> None:
        self.run, self.model, self.tokenizer, self.corpus = run, model, tokenizer, corpus
        self.recipe, self.tuned, self.trained, self.processes = recipe, tuned, trained, processes
        self.seed: int = run.record["settings"]["seed"]
        self.dtype = model.dtype

    # -- before and after

    def before(self, planned: tuple[Stage, ...], *, measure: bool, needle: tuple[int, ...]) -> None:
        """Measure the model as it is and scaled without training, once."""
        if "reference_loss" not in self.run.record:
            self.run.save(reference_loss=self._reference_loss())
        final = planned[-1]
        if measure and "perplexity" not in self.run.record:
            found = {"stock": self._perplexity(final.window)}
            patch(self.model, rope=final.rope)
            try:
                found["untrained"] = self._perplexity(final.window)
            finally:
                unpatch(self.model)
            self.run.save(perplexity=found)
        if needle and self.processes.is_main_process and "untrained" not in self.run.record.get("needle", {}):
            self._needle("untrained", needle, [f"untrained: rope={final.rope}"])

    def after(self, final: Stage, *, measure: bool, needle: tuple[int, ...]) -> None:
        """Measure the model that was saved, and write its card."""
        record = self.run.record
        if measure:
            self.run.save(perplexity=record["perplexity"] | {"trained": self._perplexity(final.window)})
        if needle and self.processes.is_main_process:
            self._needle("trained", needle, [])
        if self.processes.is_main_process:
            (self.run.folder / "README.md").write_text(write_card(record), encoding="utf-8")
        self.processes.wait_for_everyone()
        self.run.save(finished=True)
        if self.processes.is_main_process:
            for checkpoint in self.run.folder.glob("stages/*/checkpoint-*"):
                shutil.rmtree(checkpoint)

    def _perplexity(self, window: int) -> list[dict[str, Any]]:
        from .held_out import by_position, position_bins

        ids = held_out_ids(self.corpus, self.tokenizer, window)
        return by_position(self.model, ids, position_bins(self.trained, window))

    def _needle(self, name: str, lengths: tuple[int, ...], variants: list[str]) -> None:
        from hf_longctx.measure.needle import run_needle

        folder = f"needle-{name}"
        run_needle(
            self.model,
            self.tokenizer,
            variants=variants,
            lengths=lengths,
            seed=self.seed,
            out=self.run.folder / folder,
        )
        self.run.save(needle=self.run.record.get("needle", {}) | {name: folder})

    def _reference_loss(self) -> float:
        """The model's own loss on training text within its window."""
        import torch

        from .held_out import token_losses

        length = min(self.trained, _REFERENCE_TOKENS)
        short = PackedDataset(self.corpus, self.tokenizer, length, seed=self.seed)
        rows = itertools.islice(short, _REFERENCE_TOKENS // length)
        losses = [token_losses(self.model, row["input_ids"].tolist()) for row in rows]
        loss = float(torch.cat(losses).mean())
        if not math.isfinite(loss):
            raise ValueError(
                f"the model's own loss on text within its window is {loss}: its weights are damaged, or dtype "
                f"{self.dtype} cannot hold its numbers; load it with dtype float32"
            )
        return loss

    # -- training

    def prepare(self, first: Stage, attention: str | None, pose: bool, *, tile: bool) -> Any:
        """Patch the model, prove that it took, and choose what is trained."""
        from .tiled_loss import tile_loss

        self._patch(first, attention, pose)
        if tile:
            tile_loss(self.model)
        adapted = make_trainable(
            self.model, self.tuned, rank=self.recipe.rank, alpha=self.recipe.alpha, seed=self.seed
        )
        if self._autocast():
            to_float32(adapted)
        return adapted

    def _autocast(self) -> bool:
        import torch

        on_cuda = self.model.device.type == "cuda" and torch.cuda.is_bf16_supported()
        return self.dtype == torch.bfloat16 or on_cuda

    def _patch(self, stage: Stage, attention: str | None, pose: bool) -> None:
        from .guards import check_changed, rope_state

        if is_patched(self.model):
            unpatch(self.model)
        before = rope_state(self.model)
        try:
            patch(self.model, rope=stage.rope, attention=attention or "full")
        except ValueError as error:
            if attention is not None or pose:
                raise
            logger.info("%s: trained with the model's own attention", error)
            patch(self.model, rope=stage.rope)
        check_changed(self.model, before, stage.rope)

    def train(
        self, adapted: Any, planned: tuple[Stage, ...], *, attention: str | None, pose: bool, **how: Any
    ) -> None:
        """Train every stage that is not finished, from the last whole checkpoint."""
        checkpoint_bytes = 3 * trainable_bytes(adapted) + (1 << 20)
        if self.tuned == "full":
            checkpoint_bytes += sum(p.numel() * p.element_size() for p in adapted.parameters() if not p.requires_grad)
        whole = sum(p.numel() * p.element_size() for p in self.model.parameters())
        if self.processes.is_main_process:
            check_disk(self.run.folder, (KEPT + 1) * checkpoint_bytes + whole, "its checkpoints and the result")
            for index in range(len(planned)):
                drop_torn(self.run.stage(index))
        self.processes.wait_for_everyone()
        found = [whole_checkpoints(self.run.stage(index)) for index in range(len(planned))]
        at = max((index for index, one in enumerate(found) if one), default=0)
        logs = dict(enumerate(self.run.record.get("stages", ())))
        for index in range(at, len(planned)):
            stage = planned[index]
            if index > 0:
                self._patch(stage, attention, pose)
            step, checkpoint = found[index][-1] if found[index] else (0, None)
            log = self._stage(
                adapted, index, stage, len(planned), checkpoint, finished=step >= stage.steps, pose=pose,
                checkpoint_bytes=checkpoint_bytes, **how,
            )  # fmt: skip
            logs[index] = asdict(stage) | {"log": log}
            self.run.save(stages=[logs[one] for one in sorted(logs)])

    def _stage(
        self,
        adapted: Any,
        index: int,
        stage: Stage,
        stages: int,
        checkpoint: Path | None,
        *,
        finished: bool,
        pose: bool,
        checkpoint_bytes: int,
        micro_batch: int,
        checkpointing: bool,
        max_first_loss: float | None,
        save_every: int | None,
        report_to: str,
        progress: bool,
    ) -> list[dict[str, Any]]:
        """Train one stage, or load what it came to; the log of its steps."""
        from .guards import Guards, first_loss_limit
        from .trainer import make_trainer

        reference = self.run.record["reference_loss"]
        limit = max_first_loss or first_loss_limit(reference, self.model.config.get_text_config().vocab_size)
        guards = Guards(
            first_limit=limit, reference=reference, clip=self.recipe.clip, checkpoint_bytes=checkpoint_bytes,
            rope=stage.rope,
        )  # fmt: skip
        trainer = make_trainer(
            adapted,
            PackedDataset(
                self.corpus,
                self.tokenizer,
                stage.length,
                window=stage.window if pose else None,
                seed=self.seed + index,
            ),
            self.recipe,
            stage,
            out=self.run.stage(index),
            guards=guards,
            micro_batch=micro_batch,
            accumulation=_accumulation(stage, micro_batch, self.processes.num_processes),
            checkpointing=checkpointing,
            autocast=self._autocast(),
            on_cpu=self.model.device.type == "cpu",
            save_every=save_every,
            report_to=report_to,
            progress=f"stage {index + 1} of {stages}, " if progress and stages > 1 else "" if progress else None,
            seed=self.seed,
        )
        if finished and checkpoint is not None:
            trainer.load_weights(checkpoint)
            log = trainer.log_of(checkpoint)
        else:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            log = [row for row in trainer.state.log_history if "loss" in row]
            trainer.save_state()
        trainer.accelerator.free_memory()
        del trainer
        gc.collect()
        return log

    # -- the result

    def save(self, adapted: Any, final: Stage, *, merge: bool) -> None:
        """Write what was trained: a model that loads anywhere, or an adapter that carries its RoPE."""
        from .tiled_loss import untile_loss

        folder, writes = self.run.folder, self.processes.is_main_process
        untile_loss(self.model)
        self.model.eval()
        lora = self.tuned != "full"
        if lora and writes:
            save_adapter(adapted, folder / "adapter" if merge else folder, window=final.window)
        if lora:
            adapted.merge_and_unload()
            self.model.to(self.dtype)
        settle_rope(self.model, window=final.window)
        if writes and (merge or not lora):
            whole = sum(p.numel() * p.element_size() for p in self.model.parameters())
            check_disk(folder, whole, "the extended model")
            self.model.save_pretrained(folder)
        if writes:
            self.tokenizer.model_max_length = final.window
            self.tokenizer.save_pretrained(folder)
        self.processes.wait_for_everyone()
