"""One run of `extend`: the model, its data, and the folder that remembers how far it is."""

from __future__ import annotations

import itertools
import logging
import math
import shutil
import time
from pathlib import Path
from typing import Any

from hf_longctx.hf.adapters import save_adapter
from hf_longctx.hf.patching import is_patched, patch, unpatch
from hf_longctx.hf.rotary import RopeGeometry
from hf_longctx.hf.saving import settle_rope
from hf_longctx.measure.heatmap import length_label

from .card import COLUMNS, needles_found, write_card
from .checkpoints import bytes_of, check_disk
from .corpus import Corpus
from .dataset import PackedDataset, held_out_ids
from .held_out import HeldOut, Row, token_losses
from .progress import forecast, say
from .recipes import Recipe, Stage
from .rehearsal import patch_stage
from .run_folder import RunFolder
from .stages import accumulation, carry_out, go_through, reached
from .tuning import make_trainable, to_float32

logger = logging.getLogger(__name__)

#: Tokens of training text that the model's own loss is taken from.
_REFERENCE_TOKENS = 4096
#: Where the needle test is, in the run's folder.
NEEDLE = "needle"
#: What is measured, in this order, and what the card and the page call it.
BASE, UNTRAINED, TRAINED = COLUMNS


class ExtensionRun:
    """One run: the model, its data, and the folder that remembers how far it is."""

    def __init__(
        self,
        run: RunFolder,
        model: Any,
        tokenizer: Any,
        corpus: Corpus,
        recipe: Recipe,
        tuned: str,
        numbers: RopeGeometry,
        processes: Any,
        progress: bool,
    ) -> None:
        self.run, self.model, self.tokenizer, self.corpus = run, model, tokenizer, corpus
        self.recipe, self.tuned, self.numbers, self.processes = recipe, tuned, numbers, processes
        self.seed: int = run.record["settings"]["seed"]
        self.dtype = model.dtype
        self.progress = progress and processes.is_main_process
        self._held: HeldOut | None = None
        self._reading: float | None = None  # seconds a token

    # -- before and after

    def before(self, planned: tuple[Stage, ...], *, measure: bool, needle: tuple[int, ...]) -> None:
        """Measure the model as it is and scaled without training, each once."""
        final = planned[-1]
        if measure:
            self._held = self._held_out(final.window)
        if "reference_loss" not in self.run.record:
            self.run.save(reference_loss=self._reference_loss())
        if self._held is not None:
            known = self._perplexity()
            self._keep(BASE, self._held.read_base(self.model, known.get(BASE)))
            if UNTRAINED not in known:
                patch(self.model, rope=final.rope)
                try:
                    self._keep(UNTRAINED, self._held.read(self.model, self._perplexity()[BASE]))
                finally:
                    unpatch(self.model)
        if needle and UNTRAINED not in self.run.record.get("needle", {}):
            self._needle(needle, stock=BASE, variants=[f"{UNTRAINED}: rope={final.rope}"])

    def after(self, *, needle: tuple[int, ...]) -> None:
        """Measure the model that was saved, and write its card and its page."""
        if self._held is not None:
            self._keep(TRAINED, self._held.read(self.model, self._perplexity()[BASE]))
        if needle:
            self._needle(needle, stock=TRAINED, variants=[])
        if self.processes.is_main_process:
            (self.run.folder / "README.md").write_text(write_card(self.run.record), encoding="utf-8")
        self.processes.wait_for_everyone()
        self.run.save(finished=True)
        if self.processes.is_main_process:
            from hf_longctx.measure.report import attempt

            attempt(self.run.folder)
            for checkpoint in self.run.folder.glob("stages/*/checkpoint-*"):
                shutil.rmtree(checkpoint)

    def _perplexity(self) -> dict[str, list[Row]]:
        return dict(self.run.record.get("perplexity", {}))

    def _keep(self, name: str, rows: list[Row]) -> None:
        self.run.save(perplexity=self._perplexity() | {name: rows})
        if self.progress:
            told = ", ".join(f"{row['perplexity']:.4g} to {length_label(row['stop'])}" for row in rows)
            say(f"{name}: perplexity {told}")

    def _held_out(self, window: int) -> HeldOut:
        """The text to measure on; a warning where it does not fill the window."""
        ids = held_out_ids(self.corpus, self.tokenizer, window)
        if len(ids) < window and self.processes.is_main_process and "held_out_tokens" not in self.run.record:
            logger.warning(
                "data=%r holds out %s tokens, fewer than the window of %s: perplexity beyond them is not measured; "
                "give more text", self.corpus.name, f"{len(ids):,}", f"{window:,}",
            )  # fmt: skip
        self.run.save(held_out_tokens=len(ids))
        if self.progress:
            say(
                f"reading {len(ids):,} tokens of held-out text, by the base model, scaled and not trained, and trained"
            )
        return HeldOut(ids, self.numbers.max_positions, window, self.seed, self.progress)

    def _needle(self, lengths: tuple[int, ...], *, stock: str, variants: list[str]) -> None:
        """Ask the model under another name: before and after training are variants of one needle run."""
        from hf_longctx.measure.needle import run_needle
        from hf_longctx.measure.needle_lines import NeedleLines

        if not self.processes.is_main_process:
            return
        summary = run_needle(
            self.model,
            self.tokenizer,
            variants=variants,
            lengths=lengths,
            seed=self.seed,
            damage=False,  # the held-out text tells it, with the base model's logits from before training
            out=self.run.folder / NEEDLE,
            stock=stock,
            model_name=self.run.record.get("base_model") or Path(self.run.record["settings"]["model"]).name,
            command=self.run.record.get("command"),
            progress=self.progress,
            on_row=NeedleLines(trials=1) if self.progress else None,
        )
        self.run.save(needle=needles_found(summary))

    def _reference_loss(self) -> float:
        """The model's own loss on training text within its window."""
        import torch

        length = min(self.numbers.trained, _REFERENCE_TOKENS)
        short = PackedDataset(self.corpus, self.tokenizer, length, seed=self.seed)
        rows = itertools.islice(short, _REFERENCE_TOKENS // length)
        started = time.perf_counter()
        losses = [token_losses(self.model, row["input_ids"].tolist()) for row in rows]
        self._reading = (time.perf_counter() - started) / sum(map(len, losses))
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
        own = patch_stage(self.model, stage, attention, pose)
        if own is not None:
            logger.info("%s: trained with the model's own attention", own)
        check_changed(self.model, before, stage.rope)

    def train(
        self, adapted: Any, planned: tuple[Stage, ...], *, attention: str | None, pose: bool, **how: Any
    ) -> None:
        """Train every stage that is not finished, from the last whole checkpoint."""
        if self.progress:
            at, step, _ = reached(self.run, planned)
            said = forecast(
                planned,
                processes=self.processes.num_processes,
                done=step + sum(stage.steps for stage in planned[:at]),
                seconds=self._reading,
                passes=4 if how["checkpointing"] else 3,
            )
            say(said)
        checkpoint_bytes = 3 * bytes_of(p for p in adapted.parameters() if p.requires_grad) + (1 << 20)
        if self.tuned == "full":
            checkpoint_bytes += bytes_of(p for p in adapted.parameters() if not p.requires_grad)

        def train(index: int, stage: Stage, checkpoint: Path | None, finished: bool) -> list[dict[str, Any]]:
            if index > 0:
                self._patch(stage, attention, pose)
            return self._stage(
                adapted, index, stage, len(planned), checkpoint, finished=finished, pose=pose,
                checkpoint_bytes=checkpoint_bytes, **how,
            )  # fmt: skip

        go_through(
            self.run, planned, train, model=self.model, checkpoint_bytes=checkpoint_bytes, processes=self.processes
        )

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
    ) -> list[dict[str, Any]]:
        """Train one stage, or load what it came to; the log of its steps."""
        from .guards import Guards, first_loss_limit
        from .trainer import Setup, make_trainer

        reference = self.run.record["reference_loss"]
        limit = max_first_loss
        if limit is None:
            limit = first_loss_limit(reference, self.model.config.get_text_config().vocab_size)
        guards = Guards(
            first_limit=limit, reference=reference, clip=self.recipe.clip, checkpoint_bytes=checkpoint_bytes,
            rope=stage.rope,
        )  # fmt: skip
        dataset = PackedDataset(
            self.corpus,
            self.tokenizer,
            stage.length,
            window=stage.window if pose else None,
            seed=self.seed + index,
        )
        setup = Setup(
            self.recipe,
            stage,
            self.run.stage(index),
            save_every,
            report_to,
            self.seed,
            micro_batch=micro_batch,
            accumulation=accumulation(stage.batch, micro_batch, self.processes.num_processes),
            checkpointing=checkpointing,
            autocast=self._autocast(),
            on_cpu=self.model.device.type == "cpu",
        )
        said = f"stage {index + 1} of {stages}, " if stages > 1 else ""
        trainer = make_trainer(adapted, dataset, setup, guards=guards, progress=said if self.progress else None)
        return carry_out(trainer, checkpoint, finished=finished)

    # -- the result

    def save(self, adapted: Any, final: Stage, *, merge: bool) -> None:
        """Write what was trained: a model that loads anywhere, or an adapter that carries its RoPE."""
        from .tiled_loss import untile_loss

        folder, writes = self.run.folder, self.processes.is_main_process
        untile_loss(self.model)
        self.model.eval()
        lora = self.tuned != "full"
        if lora and writes:
            base = self.run.record.get("base_model")
            save_adapter(adapted, folder / "adapter" if merge else folder, window=final.window, base=base)
        if lora:
            adapted.merge_and_unload()
            self.model.to(self.dtype)
        settle_rope(self.model, window=final.window)
        if writes and (merge or not lora):
            check_disk(folder, bytes_of(self.model.parameters()), "the extended model")
            self.model.save_pretrained(folder)
        if writes:
            self.tokenizer.model_max_length = final.window
            self.tokenizer.save_pretrained(folder)
        self.processes.wait_for_everyone()
