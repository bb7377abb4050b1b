"""`distill`: attention layers become Mamba-2 layers and are healed, taught by the very model they are part of."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_longctx.mamba.mamba2 import Mamba2
from hf_longctx.mamba.mamba2 import parse as parse_mamba
from hf_longctx.measure.subject import look_at
from hf_longctx.measure.variants import Variant

from .checks import trainable, whole
from .corpus import open_corpus
from .distillation_run import DistillationRun
from .phases import DEFAULT, OPTIMIZER, read_phases
from .rehearsal import check_logs, check_needles, check_text
from .stages import accumulation, open_run, origin, processes_for


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
    from hf_longctx.hf.loading import check_place, load_config, load_tokenizer, load_weights, skeleton

    plan, phases = parse_mamba(mamba), read_phases(stages, batch=batch, length=length)
    whole("save_every", save_every)
    named = isinstance(model, str)
    if named:
        check_place(dtype, device)
    trainable(dtype if named else model.dtype)
    if not named and tokenizer is None:
        raise ValueError("tokenizer is None: give the loaded model's tokenizer, or the model by name")
    config = load_config(model) if named else model.config
    if getattr(config, "longctx", None):
        raise ValueError(
            "the model is patched: distill starts from an ordinary one, whose attention layers are the teacher; call "
            "hf_longctx.unpatch(model) first, or name the checkpoint before it was patched"
        )
    places = {str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()}
    if len(places) > 1:
        raise ValueError(
            f"the model lies on several devices ({', '.join(sorted(places))}), which distill cannot train: load it on "
            "one, and start a process for each with accelerate launch"
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
        if not named:
            raise ValueError(
                f"out={str(out)!r} holds this run, finished, and the loaded model has not been through it: load the "
                f"healed model with hf_longctx.from_pretrained({str(out)!r}), or name a new folder"
            )
        return run.record
    if named:
        tokenizer = load_tokenizer(model)
    # All that can be refused, before anything is written: a folder keeps the settings that it was begun with.
    check_logs(report_to)
    converted = Variant("converted", attention, rope, str(plan), own_windows=own_windows)
    look_at(skeleton(config), converted)
    check_text(
        corpus,
        tokenizer,
        [length],
        seed=seed,
        without="measure nothing (--held-out 0, held_out=0)" if held_out else None,
    )
    if lengths:
        check_needles(tokenizer, lengths, seed)
    if named:
        model = load_weights(model, dtype=dtype, device=device or str(processes.device))
        trainable(model.dtype)
    work = DistillationRun(run, model, tokenizer, corpus, processes, progress)
    run.save(**origin(source=OPTIMIZER.source, data=corpus.label, command=command))
    work.before()
    work.train(
        phases, micro_batch=micro_batch, accumulation=times, checkpointing=checkpointing,
        save_every=save_every, report_to=report_to,
    )  # fmt: skip
    work.save()
    work.after()
    return run.record
