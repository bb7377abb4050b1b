"""`distill`: attention layers become Mamba-2 layers and are healed, taught by the very model they are part of."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_longctx.hf.mixers import EXACT, mixers
from hf_longctx.hf.patching import patch
from hf_longctx.mamba.mamba2 import Mamba2
from hf_longctx.mamba.mamba2 import parse as parse_mamba

from .checkpoints import bytes_of, check_disk
from .checks import whole
from .corpus import Corpus, open_corpus
from .dataset import PackedDataset, held_out_ids
from .phases import DEFAULT, OPTIMIZER, Phase, read_phases
from .progress import say
from .run_folder import RunFolder
from .stages import accumulation, carry_out, go_through, open_run, origin, processes_for

#: Places in the text at which facts are hidden, and how often, in the needle test before and after.
_DEPTHS, _TRIALS = 5, 2


def distill(
    model: Any,
    tokenizer: Any = None,
    *,
    mamba: str | Mamba2,
    out: str | Path,
    data: str | Path = "kjv",
    attention: str | None = None,
    rope: str | None = None,
    own_windows: str = "intersect",
    stages: str = DEFAULT,
    length: int = 1024,
    batch: int = 8,
    micro_batch: int = 1,
    text_field: str = "text",
    split: str = "train",
    seed: int = 0,
    checkpointing: bool = True,
    held_out: int = 8192,
    needle: tuple[int, ...] | None = None,
    save_every: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    report_to: str = "none",
    progress: bool = True,
    model_name: str | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Convert attention layers to Mamba-2 layers, heal them by distillation, measure, and save.

    The teacher is the model itself: its attention modules stand by and are put back for each of the teacher's
    forwards, so its weights exist once and are not changed. Only the mixers are trained. Stage by stage they are
    aligned with the attention that they replace (`align`), matched to the teacher's next-token probabilities
    (`match`), and, if asked for, trained on the text itself (`text`). Started again with the same settings, a killed
    run goes on, with the same losses step for step. Under `accelerate launch` the batch is shared by the processes.

    Args:
        model: hub id, local folder, `demo`, or a loaded causal language model, not patched. A loaded one is left
            converted and healed; `unpatch` gives it its attention back.
        tokenizer: its tokenizer, where `model` is loaded.
        mamba: which layers, and from what they start, as for `patch`.
        data: training text: `kjv`, `prose`, a folder or file of text or JSON lines, or a data set, as
            `open_corpus` takes it.
        out: folder for the result and what a killed run needs.
        attention: a pattern for the layers that stay, as for `patch`; the teacher has it too.
        rope: a scaling, as for `patch`; the teacher has it too.
        own_windows: as for `patch`.
        stages: what is lowered and for how many steps: `align:400,match:400`; with a rate, `match:400:3e-4`.
        length: tokens of a training sequence.
        batch: sequences of an optimizer step, over all processes.
        micro_batch: sequences that a process computes at once.
        text_field: where a JSON line or a data set's row has its text.
        split: of a data set.
        seed: of data order and of the needle test.
        checkpointing: whether activations are computed again in the backward pass.
        held_out: tokens of held-out text that perplexity and KL are measured on, before and after; 0 for none.
        needle: lengths of the needle test before and after; None takes `length`, an empty one leaves it out.
        save_every: steps between checkpoints; default a tenth of a stage, at most 100.
        dtype: of the weights, where `model` is a name. What is trained is held in float32 meanwhile.
        device: `cpu` or `cuda`, where `model` is a name.
        report_to: where the trainer logs to besides its own files, such as `tensorboard`.
        progress: whether to print a line a step on stderr.
        model_name: what the card calls the model; None takes the name it was loaded by.
        command: how the user started this; kept for the card.

    Returns:
        What `distill.json` says: `settings`, `trained` (names and number of parameters), `stages` with their logs,
        `quality` of `stock`, `converted` and `healed`.

    Raises:
        ValueError: settings that cannot work, before anything is trained; a folder with another run; training gone
            wrong.
        ModuleNotFoundError: a package is missing.
    """
    from hf_longctx.hf.loading import load_config, load_model

    plan, phases = parse_mamba(mamba), read_phases(stages, batch=batch, length=length)
    whole("save_every", save_every)
    named = isinstance(model, str)
    if not named and tokenizer is None:
        raise ValueError("tokenizer is None: give the loaded model's tokenizer, or the model by name")
    config = load_config(model) if named else model.config
    if getattr(config, "longctx", None):
        raise ValueError(
            "the model is patched: distill starts from an ordinary one, whose attention layers are the teacher; call "
            "hf_longctx.unpatch(model) first, or name the checkpoint before it was patched"
        )
    corpus = open_corpus(data, field=text_field, split=split)
    processes = processes_for(str(device) == "cpu" if named else model.device.type == "cpu")
    times = accumulation(batch, micro_batch, processes.num_processes)
    lengths = (length,) if needle is None else tuple(needle)
    settings = {
        "model": model_name or (model if named else (config._name_or_path or type(model).__name__)),
        "mamba": str(plan), "attention": attention, "rope": rope, "own_windows": own_windows, "seed": seed,
        "data": corpus.name, "text_field": text_field, "split": split,
        "stages": [asdict(phase) for phase in phases], "held_out": held_out, "needle": list(lengths),
    }  # fmt: skip
    run = open_run(Path(out), settings, kind="distill", processes=processes)
    if run.record["finished"]:
        return run.record
    if named:
        model, tokenizer = load_model(model, dtype=dtype, device=device or str(processes.device))
    if str(model.dtype) == "torch.float16":
        raise ValueError("dtype is float16, in which gradients vanish: choose bfloat16 or float32")
    work = _Work(run, model, tokenizer, corpus, processes, progress)
    run.save(**origin(source=OPTIMIZER.source, data=corpus.label, command=command))
    work.before()
    work.train(
        phases, micro_batch=micro_batch, accumulation=times, checkpointing=checkpointing,
        save_every=save_every, report_to=report_to,
    )  # fmt: skip
    work.save()
    work.after()
    return run.record


class _Work:
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
        from .trainer import make_trainer

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
        trainer = make_trainer(
            student,
            dataset,
            OPTIMIZER,
            phase,
            out=self.run.stage(index),
            guards=Guards(None, math.nan, OPTIMIZER.clip, checkpoint_bytes, rope=""),
            micro_batch=micro_batch,
            accumulation=accumulation,
            checkpointing=False,  # the student does it, since the trainer does not see the model
            autocast=autocast,
            on_cpu=on_cpu,
            save_every=save_every,
            report_to=report_to,
            progress=f"stage {index + 1} of {phases} ({phase.objective}), " if self.progress else None,
            seed=self.settings["seed"],
        )
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
