"""`hf-longctx eval SUITE.yaml`: models, variants, tasks, lengths and costs in one run."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_longctx.cli.config import command_of, defaults, keys
from hf_longctx.cli.cost import cost
from hf_longctx.cli.effective import effective
from hf_longctx.cli.job import Job, share
from hf_longctx.cli.needle import needle
from hf_longctx.cli.shared import Device, Dtype, FailUnder, Variants, command_line, gated

if TYPE_CHECKING:
    from hf_longctx.measure.suite import Suite


@dataclass(frozen=True)
class _Kind:
    """A kind of part: the command that reads its options, and those that make it this kind."""

    command: Any
    always: Mapping[str, Any]
    without: frozenset[str] = frozenset()

    def keys(self) -> set[str]:
        return set(keys(self.command)) - {*self.without, *self.always}


def _kinds() -> dict[str, _Kind]:
    climb, search = command_of(effective), frozenset({"budget", "bisections", "confidence"})
    return {
        "needle": _Kind(command_of(needle), {}),
        "effective": _Kind(climb, {}, frozenset({"fixed"})),
        "tasks": _Kind(climb, {"fixed": True}, search),
        "cost": _Kind(command_of(cost), {}),
    }


def eval_(
    suite: Annotated[Path, typer.Argument(metavar="SUITE.yaml", help="What to run; see evals/README.md.")],
    model: Annotated[
        list[str] | None, typer.Option("--model", help="In place of the suite's models; repeatable.")
    ] = None,
    variant: Variants = None,
    lengths: Annotated[
        str | None, typer.Option("--lengths", help="In place of those of every part; k is 1024.")
    ] = None,
    files: Annotated[list[str] | None, typer.Option("--files", help="TASK=FILE, for qa_1 and qa_2.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="In place of the suite's.")] = None,
    dtype: Dtype = None,
    device: Device = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="RUN", help="Folder of the run. [default: runs/NAME of the suite]")
    ] = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="Measure costs that ran out of memory or time in this folder again.")
    ] = False,
    fail_under: FailUnder = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all summaries as one JSON document.")] = False,
) -> None:
    """Run a suite: everything is checked before the first model loads, and a stopped run goes on in its folder.

    Raises:
        ValueError: a suite that cannot work, or a folder that holds another run.
        typer.Exit: with 1, if what --fail-under asks for is not reached.
    """
    from hf_longctx.measure import gate, processes
    from hf_longctx.measure.report import attempt
    from hf_longctx.measure.suite import begin, read_suite

    kinds = _kinds()
    names = {name: kind.keys() for name, kind in kinds.items()}
    limits = gate.parse(fail_under or [])
    given = {"variant": variant, "lengths": lengths, "files": files, "seed": seed, "dtype": dtype, "device": device}
    given |= {"retry": retry or None}
    asked = read_suite(suite, names).override(names, model=model, **given)
    if not asked.models:
        raise ValueError(f"{suite} names no model: give --model, such as --model demo")
    out = out or Path("runs") / asked.name
    jobs = {
        (model_name, part.name): _read(kinds[part.kind], model_name, part.options, f"{suite}, part {part.name!r}", out)
        for model_name in asked.models
        for part in asked.parts
    }
    gate.check(limits, _check(jobs), {part.kind for part in asked.parts})
    share(device, out)
    if processes.here().main:
        begin(out, asked, command_line())
    processes.wait()
    summary = _run(asked, jobs, out, as_json=as_json)
    if not processes.here().main:
        return
    attempt(out)
    if as_json:
        typer.echo(json.dumps(summary, ensure_ascii=False))
    else:
        typer.echo(f"run: {out}")
    gated(out, limits)


def _read(kind: _Kind, model: str, options: Mapping[str, Any], where: str, out: Path) -> Job:
    """The job of a part, checked as the command checks it."""
    values = defaults({"model": model, **options, **kind.always}, kind.command, where)
    try:
        with kind.command.make_context("eval", [], default_map=values) as context:
            return kind.command.invoke(context)
    except typer.BadParameter as error:
        raise ValueError(f"{where}: {error.format_message()}") from None
    except (ValueError, ImportError) as error:
        raise type(error)(f"{where}: {error}") from None


def _check(jobs: Mapping[tuple[str, str], Job]) -> list[str]:
    """Try every variant on its model's configuration; the names of all variants."""
    from hf_longctx.hf.loading import load_config, skeleton
    from hf_longctx.hf.saving import take_plan
    from hf_longctx.measure.subject import look_at
    from hf_longctx.measure.variants import AS_LOADED, STOCK

    names, tried = [STOCK] if any(job.options["stock"] for job in jobs.values()) else [], set()
    for model in dict.fromkeys(model for model, _ in jobs):
        config = load_config(model)
        if getattr(config, "longctx", None):
            take_plan(config)
            names.append(AS_LOADED)
        network = skeleton(config)
        for (owner, part), job in jobs.items():
            for variant in job.options["variants"] if owner == model else ():
                if (model, variant) not in tried:
                    try:
                        look_at(network, variant)
                    except (ValueError, TypeError) as error:
                        raise ValueError(f"part {part!r}, model {model}, variant {variant.name!r}: {error}") from error
                tried.add((model, variant))
                names.append(variant.name)
    return list(dict.fromkeys(names))


def _run(suite: Suite, jobs: Mapping[tuple[str, str], Job], out: Path, *, as_json: bool) -> dict[str, Any]:
    """Carry all jobs out; a model is loaded once for as long as the parts that follow need it."""
    from hf_longctx.measure import processes
    from hf_longctx.measure.suite import summarise

    found: dict[str, dict[str, Any]] = {}
    summary: dict[str, Any] = {}
    loaded: tuple[Any, Any] | None = None
    held: tuple[Any, ...] | None = None
    main = processes.here().main
    for (model, part), folder in suite.folders().items():
        job = jobs[model, part]
        key = (model, job.dtype, job.device)
        if held is not None and (not job.loads or held != key):
            # What follows needs the memory, or measures it.
            loaded = held = None
            _free()
        if job.loads and loaded is None:
            loaded, held = job.load(), key
        if main and not as_json:
            typer.secho(f"\n{folder}: {part} of {model}", bold=True)
        found[folder] = job.into(out / folder).carry_out(loaded)
        if main:
            summary = summarise(out, suite.name, found)
            if not as_json:
                job.show(found[folder], out / folder)
    return summary


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
