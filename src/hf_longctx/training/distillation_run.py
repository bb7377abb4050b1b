"""One run of `distill`: the model, its data, and the folder that remembers how far it is."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from hf_longctx.hf.mixers import EXACT, mixers
from hf_longctx.hf.patching import patch

from .checkpoints import bytes_of, check_disk
from .corpus import Corpus
from .dataset import PackedDataset, held_out_ids
from .phases import OPTIMIZER, Phase
from .progress import say
from .run_folder import RunFolder
from .stages import carry_out, go_through

#: Places in the text at which facts are hidden, and how often, in the needle test before and after.
_DEPTHS, _TRIALS = 5, 2


class DistillationRun:
    """One run: the model, its data, and the folder that remembers how far it is."""

    def __init__(
        self, run: RunFolder, model: Any, tokenizer: Any, corpus: Corpus, processes: Any, progress: bool
    ) -> None:
        self.run, self.model, self.tokenizer, self.corpus = run, model, tokenizer, corpus
        self.processes, self.dtype = processes, model.dtype
        self.main: bool = processes.is_main_process
        self.progress = progress and self.main
        self.settings: dict[str, Any] = run.record["settings"]

    # -- before and after

    def before(self) -> None:
        """Measure the needle test on the model as it is and converted, convert it, and measure the rest."""
        self.model.eval()
        names = ("attention", "rope", "own_windows")
        rest = {name: self.settings[name] for name in names if self.settings[name] is not None}
        plan = rest | {"mamba": self.settings["mamba"]}
        teacher = {"teacher": rest} if rest.keys() != {"own_windows"} else {}
        if self.settings["needle"] and "converted" not in self.run.record.get("needle", {}) and self.main:
            self._needle("before", variants=teacher | {"converted": plan}, stock=not teacher)
        self.processes.wait_for_everyone()
        patch(self.model, **plan)
        self._mixers = mixers(self.model)
        trained = [p.numel() for mixer in self._mixers.values() for p in mixer.parameters()]
        self.run.save(
            trained={
                "what": "the mixers of these layers; everything else is as it was",
                "layers": sorted(self._mixers),
                "parameters": sum(trained),
                "of": sum(p.numel() for p in self.model.parameters()),
            }
        )
        if "quality" not in self.run.record:
            found = self._quality()
            stock = {"perplexity": found.pop("stock_perplexity", None), "kl": 0.0, "same": 1.0}
            stock["tokens"] = found.get("tokens")
            self.run.save(quality={"stock": stock, "converted": found} if found else {})
            self._tell("converted")

    def after(self) -> None:
        """Measure the model that was saved; write its card and its curves."""
        found = self._quality()
        found.pop("stock_perplexity", None)
        if found:
            self.run.save(quality=self.run.record["quality"] | {"healed": found})
            self._tell("healed")
        if self.settings["needle"] and self.main:
            self._needle("after", stock=False)
        if self.main:
            from .distill_card import write_card
            from .distill_curves import draw_if_possible

            picture = draw_if_possible(self.run.record, self.run.folder / "curves.png")
            (self.run.folder / "README.md").write_text(write_card(self.run.record, picture), encoding="utf-8")
        self.processes.wait_for_everyone()
        self.run.save(finished=True)
        if self.main:
            shutil.rmtree(self.run.folder / "stages", ignore_errors=True)

    def _quality(self) -> dict[str, float]:
        """Perplexity and KL on held-out text, as `student.compare` gives them; empty where none is asked for."""
        from .student import Student, compare

        if not self.settings["held_out"]:
            return {}
        length = self.settings["stages"][0]["length"]
        ids = held_out_ids(self.corpus, self.tokenizer, self.settings["held_out"])
        rows = [ids[start : start + length] for start in range(0, len(ids), length)]
        rows = [row for row in rows if len(row) > 1]
        if not rows:
            raise ValueError(
                f"data={self.corpus.name!r} holds no text out to measure on: give more text, or held_out=0"
            )
        return compare(Student(self.model, "match"), rows)

    def _tell(self, name: str) -> None:
        """A line on what was found of one of the three."""
        quality = self.run.record["quality"]
        if self.progress and name in quality:
            own, stock = quality[name], quality["stock"]
            say(f"{name}: perplexity {own['perplexity']:.4g}, stock {stock['perplexity']:.4g}; KL {own['kl']:.3g}")

    def _needle(self, when: str, **more: Any) -> None:
        """Facts hidden in text and asked for, answers generated: `before` of stock and converted, `after` of this."""
        from hf_longctx.measure.needle import run_needle
        from hf_longctx.measure.needle_lines import NeedleLines

        summary = run_needle(
            self.model, self.tokenizer, lengths=self.settings["needle"], depths=_DEPTHS, trials=_TRIALS,
            haystack="prose", seed=self.settings["seed"], damage=False, out=self.run.folder / f"needle-{when}",
            model_name=f"{self.settings['model']}, {when}", progress=self.progress,
            on_row=NeedleLines(_TRIALS) if self.progress else None, **more,
        )  # fmt: skip
        named = {"as-loaded": "healed", "teacher": "stock"}
        found = {
            named.get(name, name): [
                {key: row[key] for key in ("length", "hits", "n", "recall", "low", "high")} for row in one["lengths"]
            ]
            for name, one in summary["variants"].items()
        }
        self.run.save(needle=self.run.record.get("needle", {}) | found)

    # -- training

    def train(self, phases: tuple[Phase, ...], **how: Any) -> None:
        """Train every stage that is not finished, from the last whole checkpoint; the rest of the model is frozen."""
        import torch

        from .student import relative_scales

        flags = [(p, p.requires_grad) for p in self.model.parameters()]
        self.model.requires_grad_(False)
        for mixer in self._mixers.values():
            mixer.requires_grad_(True)
            if self.dtype == torch.bfloat16:
                mixer.float()  # small updates vanish in it
        checkpoint_bytes = sum(12 * p.numel() for m in self._mixers.values() for p in m.parameters()) + (1 << 20)

        def train(index: int, phase: Phase, checkpoint: Path | None, finished: bool) -> list[dict[str, Any]]:
            return self._stage(
                index, phase, len(phases), checkpoint, finished=finished, checkpoint_bytes=checkpoint_bytes, **how
            )

        try:
            with relative_scales(self._mixers.values()):
                go_through(
                    self.run, phases, train, model=self.model, checkpoint_bytes=checkpoint_bytes,
                    processes=self.processes,
                )  # fmt: skip
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            for mixer in self._mixers.values():
                for name, parameter in mixer.named_parameters():
                    if name not in EXACT:
                        parameter.data = parameter.data.to(self.dtype)
            self.model.eval()

    def _stage(
        self,
        index: int,
        phase: Phase,
        phases: int,
        checkpoint: Path | None,
        *,
        finished: bool,
        checkpoint_bytes: int,
        micro_batch: int,
        accumulation: int,
        checkpointing: bool,
        save_every: int | None,
        report_to: str,
    ) -> list[dict[str, Any]]:
        """Train one stage, or load what it came to; the log of its steps."""
        import torch

        from .guards import Guards
        from .student import Student
        from .trainer import Setup, make_trainer

        on_cpu = self.model.device.type == "cpu"
        autocast = self.dtype == torch.bfloat16 or (not on_cpu and torch.cuda.is_bf16_supported())
        student = Student(self.model, phase.objective, checkpointing=checkpointing)
        dataset = PackedDataset(self.corpus, self.tokenizer, phase.length, seed=self.settings["seed"] + index)
        if index == 0 and phase.objective == "align" and checkpoint is None:
            row = {
                name: next(iter(dataset))[name][None].to(self.model.device) for name in ("input_ids", "position_ids")
            }
            with torch.autocast(self.model.device.type, torch.bfloat16, enabled=autocast):
                student.calibrate(row)
        setup = Setup(
            OPTIMIZER,
            phase,
            self.run.stage(index),
            save_every,
            report_to,
            self.settings["seed"],
            micro_batch=micro_batch,
            accumulation=accumulation,
            checkpointing=False,  # the student does it, since the trainer does not see the model
            autocast=autocast,
            on_cpu=on_cpu,
        )
        guards = Guards(None, math.nan, OPTIMIZER.clip, checkpoint_bytes, rope="")
        said = f"stage {index + 1} of {phases} ({phase.objective}), "
        trainer = make_trainer(student, dataset, setup, guards=guards, progress=said if self.progress else None)
        return carry_out(trainer, checkpoint, finished=finished)

    # -- the result

    def save(self) -> None:
        """Write the healed model, which loads by `hf_longctx.from_pretrained` without the original."""
        self.model.config.longctx["healed"] = True
        if self.main:
            check_disk(self.run.folder, bytes_of(self.model.parameters()), "the healed model")
            self.model.save_pretrained(self.run.folder)
            self.tokenizer.save_pretrained(self.run.folder)
        self.processes.wait_for_everyone()
