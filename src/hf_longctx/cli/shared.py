"""What the commands that measure or train spell alike: options, variants, and how they end when they are stopped."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_longctx.cli.config import from_file

if TYPE_CHECKING:
    from hf_longctx.measure.gate import Limit
    from hf_longctx.measure.variants import Variant

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, local folder, or 'demo'.")]
Variants = Annotated[
    list[str] | None,
    typer.Option(
        "--variant",
        help="'name: rope=yarn:2 attention=window:1024+global:4'; repeatable. Keys: attention, rope, mamba, backend, "
        "own_windows.",
    ),
]
Attention = Annotated[str | None, typer.Option("--attention", help="Short for a variant 'patched' with this pattern.")]
Rope = Annotated[str | None, typer.Option("--rope", help="Short for a variant 'patched' with this scaling.")]
Mamba = Annotated[
    str | None,
    typer.Option("--mamba", help="Short for a variant 'patched' with these as Mamba-2 layers, such as 1::4."),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help="float32, bfloat16, float16, or auto for the checkpoint's own. [default: float32 on a CPU, auto on CUDA]",
    ),
]
Device = Annotated[str | None, typer.Option("--device", help="cpu or cuda.")]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="RUN", help="Folder of the run; a stopped one goes on there.")
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        is_eager=True,
        callback=from_file,
        help="YAML file of options, such as lengths: 1k,2k. Options given here count more.",
    ),
]
FailUnder = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-under",
        metavar="LIMIT",
        help="effective=8k, recall=0.8, or VARIANT:effective=8k; repeatable. Below it the exit code is 1.",
    ),
]
NoStock = Annotated[bool, typer.Option("--no-stock", help="Leave the untouched model out.")]


def asked_variants(
    variant: list[str] | None, attention: str | None = None, rope: str | None = None, mamba: str | None = None
) -> list[Variant]:
    """The variants asked for, with the one that `--attention`, `--rope` and `--mamba` stand for last.

    There may be none, also with `--no-stock`: whether anything is left to run, the model tells, since one that was
    saved patched runs too.

    Raises:
        ValueError: as `as_variants`.

    >>> [(one.name, one.rope) for one in asked_variants(["a: rope=ntk:2"], rope="yarn:2")]
    [('a', 'ntk:2'), ('patched', 'yarn:2')]
    """
    from hf_longctx.measure.variants import as_variants

    named = (("attention", attention), ("rope", rope), ("mamba", mamba))
    given = [f"{key}={text}" for key, text in named if text is not None]
    texts = [*(variant or []), *([f"patched: {' '.join(given)}"] if given else [])]
    return [one for one in as_variants(texts, stock=True) if one.definition()]


def command_line() -> str:
    """How the user started this, to be started again."""
    return shlex.join(["hf-longctx", *sys.argv[1:]])


def stopped(out: Path | None, what: str) -> typer.Exit:
    """Say what a stopped run leaves behind; the exit to raise.

    Args:
        out: the run's folder.
        what: what was being done: found, measured.
    """
    kept = f"what was {what} is in {out}; the same command goes on from there" if out else "nothing was kept"
    typer.echo(f"stopped: {kept}", err=True)
    return typer.Exit(130)


def trained(
    train: Callable[[], dict[str, Any]], show: Callable[[dict[str, Any], Path], None], out: Path, as_json: bool
) -> None:
    """Train and print the record, as one JSON document or by `show`.

    Args:
        train: gives the record.
        show: prints it; given the run's folder as well.
        out: the run's folder.
        as_json: which.

    Raises:
        typer.Exit: stopped by the user.
    """
    try:
        record = train()
    except KeyboardInterrupt:
        typer.echo(f"stopped: the same command goes on from the last checkpoint in {out}", err=True)
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(record, ensure_ascii=False))
    else:
        show(record, out)


def asked_limits(
    fail_under: list[str] | None, model: str, variants: Sequence[Variant], *, stock: bool, kind: str
) -> list[Limit]:
    """What `--fail-under` of one command asks for.

    Args:
        fail_under: as given.
        model: as given; its config is read where a limit names the model as it was loaded.
        variants: those that run.
        stock: whether the untouched model runs.
        kind: of the command, as a suite names it.

    Raises:
        ValueError: as `gate.parse` and `gate.check`, or no such model.
    """
    from hf_longctx.hf.loading import load_config
    from hf_longctx.measure import gate
    from hf_longctx.measure.variants import AS_LOADED, STOCK

    limits = list(gate.parse(fail_under or []))
    names = [*([STOCK] if stock else []), *(variant.name for variant in variants)]
    if any(one.variant == AS_LOADED for one in limits) and getattr(load_config(model), "longctx", None):
        names.append(AS_LOADED)
    gate.check(limits, names, {kind})
    return limits


def gated(run: Path | Mapping[str, Any], limits: Sequence[Limit]) -> None:
    """Say what a run does not reach.

    Args:
        run: its folder, or its summary.
        limits: from `gate.parse`.

    Raises:
        typer.Exit: with 1, if it misses one.
        ValueError: a limit for what the run does not have.
    """
    from hf_longctx.measure.gate import misses

    end(misses(run, limits))


def end(missed: Sequence[str]) -> None:
    """Say what a run does not reach, as `gate.misses` found it.

    Raises:
        typer.Exit: with 1, if there is anything.
    """
    for sentence in missed:
        typer.echo(f"missed: {sentence}", err=True)
    if missed:
        raise typer.Exit(1)


def check_place(option: str, path: Path) -> None:
    """Raise ValueError unless the folder of a file that an option asks for exists."""
    if not path.parent.is_dir():
        raise ValueError(f"{option} {str(path)!r}: there is no folder {path.parent}: create it or choose another path")


def check_plot(option: str, path: Path) -> None:
    """Raise, before anything is worked out, unless a plot can be drawn into a file that an option names.

    Raises:
        ValueError: its folder does not exist, or its ending is no image's.
        ImportError: matplotlib is not installed.
    """
    check_place(option, path)
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(
            f'{option} {str(path)!r}: a plot needs matplotlib: pip install "hf_longctx[report]", or leave out {option}'
        )
    from matplotlib.backend_bases import FigureCanvasBase

    endings = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.is_dir() or path.suffix[1:].lower() not in endings:
        raise ValueError(
            f"{option} {str(path)!r}: it must be a file with an image's ending, such as plot.png: {', '.join(endings)}"
        )


def page_of(out: Path | None) -> list[str]:
    """A line that names the page of a run, if it has one."""
    from hf_longctx.measure.report import PAGE

    return [f"page: {out / PAGE}"] if out is not None and (out / PAGE).is_file() else []


def parse_lengths(text: str, option: str = "--lengths") -> list[int]:
    """Read `1k,8k,1m`, where k is 1024 and m is 1024 x 1024.

    Args:
        text: lengths in tokens with commas between them.
        option: its name, for the error.

    Returns:
        Lengths in the order given.

    Raises:
        ValueError: for a part that is no length.

    >>> parse_lengths("512, 1k,1m")
    [512, 1024, 1048576]
    """
    from hf_longctx.rope.text import read_length

    try:
        return [read_length(part.strip()) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"{option} {text!r} is no list of lengths: write whole numbers of tokens such as 512,1k,8k,1m "
            "(k is 1024, m is 1024 x 1024)"
        ) from None


def one_length(option: str, text: str) -> int:
    """Read one length such as `32k`.

    Args:
        option: its name, for the error.
        text: the length in tokens; k is 1024, m is 1024 x 1024.

    Raises:
        ValueError: no length.

    >>> one_length("--length", "2k")
    2048
    """
    from hf_longctx.rope.text import read_length

    try:
        return read_length(text)
    except ValueError as error:
        raise ValueError(f"{option} {error}") from None
