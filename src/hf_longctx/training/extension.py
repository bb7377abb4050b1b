"""`extend`: from a model to one with a longer window, trained, measured before and after, and saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hf_longctx.hf.patching import is_patched
from hf_longctx.hf.rotary import geometry
from hf_longctx.rope import Scaling

from .checks import positive, trainable, unquantized, whole
from .corpus import open_corpus
from .extension_run import ExtensionRun
from .recipes import Recipe, find_recipe
from .rehearsal import Rehearsal, check_memory
from .stage_plan import plan_stages
from .stages import accumulation, open_run, origin, processes_for
from .tuning import check_tune


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
    rank: int | None = None,
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
        data: training text: `kjv`, `prose`, a folder or file of text or JSON lines, or a data set, as
            `open_corpus` takes it.
        out: folder for the result and what a killed run needs.
        to: the window asked for, in tokens.
        rope: method in place of the recipe's, such as `yarn`; with a factor, `to` may be left out.
        recipe: one of `RECIPES`, or one of your own.
        tune: `full`, `lora` or `lora-plus`, in place of the recipe's.
        rank: of LoRA, in place of the recipe's; its alpha over rank stays.
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
        model_name: what the card calls the model, such as the hub id of one that is loaded from a folder; None takes
            the name it was loaded by.
        command: how the user started this; kept for the card.

    Returns:
        What `extend.json` says: `settings`, `stages` with their logs, `perplexity` by position of `base`,
        `scaled-untrained` and `trained`, with their divergence from the base model, and the `needle` test's hits.
        `out` also holds the model card, `README.md`, and one page of all that was measured, `report.html`.

    Raises:
        ValueError: settings that cannot work, before anything is trained; a folder with another run; training gone
            wrong.
        ModuleNotFoundError: a package is missing.
    """
    from hf_longctx.hf.loading import check_place, hub_id, load_config, load_tokenizer, skeleton

    how = find_recipe(recipe)
    tuned = how.tune if tune is None else tune
    check_tune(tuned)
    whole("rank", rank)
    if rank is not None:
        if tuned == "full":
            raise ValueError(f"rank is {rank}, and tune='full' trains no LoRA: leave one of them out")
        how = replace(how, rank=rank, alpha=how.alpha * rank / how.rank)
    whole("save_every", save_every)
    positive("max_first_loss", max_first_loss)
    named = isinstance(model, str)
    if not merge and tuned == "full":
        raise ValueError("merge=False saves the adapter alone, and tune='full' makes none: leave one of them out")
    if named:
        check_place(dtype, device)
    trainable(dtype)
    if not named and tokenizer is None:
        raise ValueError("tokenizer is None: give the loaded model's tokenizer, or the model by name")
    config = load_config(model) if named else model.config
    if getattr(config, "longctx", None) or (not named and is_patched(model)):
        raise ValueError(
            "the model is patched: extend starts from an ordinary one; call hf_longctx.unpatch(model) first, or name "
            "the checkpoint before it was patched"
        )
    unquantized(config)
    numbers = geometry(config)
    if pose and length is None:
        length = numbers.trained
    planned = plan_stages(
        how, numbers, to=to, rope=rope, stages=stages, steps=steps, length=length, batch=batch,
        learning_rate=learning_rate,
    )  # fmt: skip
    corpus = open_corpus(data, field=text_field, split=split)

    processes = processes_for(str(device) == "cpu" if named else model.device.type == "cpu")
    for stage in planned:
        accumulation(stage.batch, micro_batch, processes.num_processes)
    loaded_by = model if named else config._name_or_path
    name = model_name or loaded_by or type(model).__name__
    settings = {
        "model": name, "data": corpus.name, "text_field": text_field, "split": split, "recipe": how.name,
        "tune": tuned, "rank": how.rank, "alpha": how.alpha, "stages": [asdict(stage) for stage in planned],
        "pose": pose, "attention": attention, "seed": seed, "merge": merge, "tile": tile,
    }  # fmt: skip
    run = open_run(Path(out), settings, kind="extend", processes=processes)
    _same_needles(run.record, needle)
    if run.record["finished"]:
        return run.record
    ahead = Rehearsal(
        recipe=how, stages=planned, corpus=corpus, tune=tuned, attention=attention, pose=pose, tile=tile,
        measure=measure, needle=tuple(needle), seed=seed, out=Path(out), report_to=report_to, save_every=save_every,
    )  # fmt: skip
    if named:
        tokenizer = load_tokenizer(model)
    ahead.check(skeleton(config) if named else model, tokenizer)
    base = hub_id(name) or hub_id(loaded_by)
    if named:
        model = _load(model, tuned, dtype, device, processes)
    trainable(model.dtype)
    if needle and tuned == "full" and str(model.dtype) != "torch.float32":
        raise ValueError(
            f"dtype is {str(model.dtype).removeprefix('torch.')} with tune='full', which trains and saves float32, "
            "so the needle tests before and after would not ask alike: load the model in float32, or leave needle out"
        )
    check_memory(model, ahead.needle)
    run.save(
        trained_length=numbers.trained,
        readable_length=numbers.max_positions,
        processes=processes.num_processes,
        base_model=base,
        **origin(source=how.source, data=corpus.label, command=command),
    )
    was_cached = model.config.use_cache
    work = ExtensionRun(run, model, tokenizer, corpus, how, tuned, numbers, processes, progress)
    work.before(planned, measure=measure, needle=needle)
    adapted = work.prepare(planned[0], attention, pose, tile=tile)
    work.train(
        adapted, planned, attention=attention, pose=pose, micro_batch=micro_batch, checkpointing=checkpointing,
        max_first_loss=max_first_loss, save_every=save_every, report_to=report_to,
    )  # fmt: skip
    model.config.use_cache = was_cached
    work.save(adapted, planned[-1], merge=merge)
    work.after(needle=needle)
    return run.record


def _load(name: str, tuned: str, dtype: str | None, device: str | None, processes: Any) -> Any:
    import torch

    from hf_longctx.hf.loading import load_weights

    where = device or str(processes.device)
    if dtype is None and torch.device(where).type == "cuda":
        # Updates of a full fine-tune vanish in bfloat16, so the weights stay in float32 under autocast.
        dtype = "float32" if tuned == "full" else "bfloat16"
    return load_weights(name, dtype=dtype, device=where)


def _same_needles(record: dict[str, Any], needle: Sequence[int]) -> None:
    """Refuse other lengths than those that a run asked at before training: both tests must ask alike.

    A run that is finished has no model before training any more to ask.
    """
    asked = sorted(int(length) for length in next(iter(record.get("needle", {}).values()), ()))
    if needle and asked and asked != sorted(set(needle)):
        raise ValueError(
            f"needle is {', '.join(map(str, needle))}, and this run asked at {', '.join(map(str, asked))} before "
            "training: give the same lengths, or begin in another folder"
        )
    if needle and not asked and record["finished"]:
        raise ValueError(
            "needle is given, and this run is finished and asked nothing before training: leave it out, begin in "
            "another folder, or ask the result alone by hf-longctx needle"
        )
