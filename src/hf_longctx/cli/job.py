"""A measuring command in two steps: read its options into a `Job`, then do it. `eval` reads many before the first."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hf_longctx.cli.shared import command_line, gated, stopped

if TYPE_CHECKING:
    from hf_longctx.measure.gate import Limit

OnRow = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Job:
    """What a command was asked: read and checked, and nothing is loaded yet.

    Attributes:
        model: hub id, local folder or `demo`.
        run: what measures, called as `run(model, tokenizer, out=, on_row=, command=, **options)`, or with the model's
            name alone where it is measured in other processes.
        options: keyword arguments of `run`.
        on_row: called with each new row.
        show: prints what `run` returned; given the run's folder as well.
        out: the run's folder.
        as_json: whether one JSON document is printed in place of tables.
        dtype: of the weights.
        device: of the weights.
        limits: what `--fail-under` asks for; judged where the job is a command of its own.
        loads: whether the model is loaded here.
        verb: what is being done, for whoever stops it.
    """

    model: str
    run: Callable[..., dict[str, Any]]
    options: Mapping[str, Any]
    on_row: OnRow
    show: Callable[[dict[str, Any], Path | None], None]
    out: Path | None
    as_json: bool
    dtype: str | None
    device: str | None
    limits: Sequence[Limit] = ()
    loads: bool = True
    verb: str = "found"

    def into(self, out: Path) -> Job:
        """The same job in another folder."""
        return replace(self, out=out)

    def load(self) -> tuple[Any, Any]:
        """The model and its tokenizer.

        Raises:
            ValueError: no such model.
        """
        from hf_longctx.hf.loading import load_model

        return load_model(self.model, dtype=self.dtype, device=self.device)

    def carry_out(self, loaded: tuple[Any, Any] | None = None) -> dict[str, Any]:
        """Measure. Several processes share it; what is measured by name, such as a cost, the first does alone.

        Args:
            loaded: the model and its tokenizer, if they are there already.

        Returns:
            What `run` returns; empty in a process that had nothing to do.

        Raises:
            ValueError: settings that cannot work, or a folder that holds another run.
            typer.Exit: stopped by the user.
        """
        from hf_longctx.measure import processes

        found: dict[str, Any] = {}
        if self.loads or processes.here().main:
            subject = (loaded or self.load()) if self.loads else (self.model,)
            told = {"out": self.out, "on_row": self.on_row, "command": command_line()}
            try:
                found = self.run(*subject, **told, **self.options)
            except KeyboardInterrupt:
                raise stopped(self.out, self.verb) from None
        processes.wait()
        return found


def measuring(read: Callable[..., Job]) -> Callable[..., None]:
    """Make a command of a function that reads options into a job; `inspect.unwrap` gives that function back.

    Args:
        read: takes the options, checks them and loads nothing.

    Returns:
        A function with the same signature that carries the job out, prints what was found, and exits with 1 where it
        does not reach the job's limits.
    """

    @functools.wraps(read)
    def command(*arguments: Any, **options: Any) -> None:
        from hf_longctx.measure import processes

        job = read(*arguments, **options)
        share(job.device, job.out)
        found = job.carry_out()
        if not processes.here().main:
            return
        if job.as_json:
            typer.echo(json.dumps(found, ensure_ascii=False))
        else:
            job.show(found, job.out)
        gated(found, job.limits)

    return command


def share(device: str | None, out: Path | None) -> None:
    """Join the other processes, if a launcher started several, and say how many they are.

    Args:
        device: as `--device`.
        out: the run's folder, which they share.

    Raises:
        ValueError: several processes, and no folder.
    """
    from hf_longctx.measure import processes

    if processes.launched() and out is None:
        raise ValueError("several processes share a run by its folder: give --out")
    processes.join(device)
    if processes.here().main and (told := processes.sharing()) is not None:
        typer.echo(told, err=True)
