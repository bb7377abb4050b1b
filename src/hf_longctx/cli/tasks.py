"""`hf-longctx tasks`: every task with an example, or one of them rendered in full."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_longctx.cli.shared import parse_lengths

if TYPE_CHECKING:
    from hf_longctx.measure.tasks import Prompt, Task

_IDS = 1 << 24
"""Of the tokenizer with one token a word: enough numbers for any list."""
_AROUND = 160
"""Characters of the beginning and of the end of a prompt in the list."""


def tasks(
    name: Annotated[str | None, typer.Argument(metavar="[TASK]", help="Render only this one, in full.")] = None,
    length: Annotated[str, typer.Option("--length", help="Tokens of prompt and answer, k is 1024.")] = "1k",
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same token ids.")] = 0,
    depth: Annotated[float | None, typer.Option("--depth", help="Where the asked fact stands, 0 to 1.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Whose tokenizer counts. [default: one token a word]")
    ] = None,
    style: Annotated[str, typer.Option("--style", help="prefix, chat or base.")] = "prefix",
    haystack: Annotated[
        str | None, typer.Option("--haystack", help="Natural text: kjv, prose, filler or a folder. [default: prose]")
    ] = None,
    files: Annotated[Path | None, typer.Option("--files", help="Your file, for qa_1 and qa_2.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List what can be asked, each task with an example, or render one.

    Raises:
        ValueError: an unknown task, a length without room for it, or a missing file.
    """
    from hf_longctx.hf.loading import load_tokenizer
    from hf_longctx.measure.tasks import REGISTRY, Unfit, find
    from hf_longctx.measure.word_tokenizer import WordTokenizer

    sizes = parse_lengths(length, "--length")
    if len(sizes) > 1:
        raise ValueError(f"--length {length!r} is a list: give one length")
    chosen = [find(name)] if name is not None else [REGISTRY[key] for key in sorted(REGISTRY)]
    tokenizer: Any = WordTokenizer(_IDS) if model is None else load_tokenizer(model)
    shown = []
    with tempfile.TemporaryDirectory() as folder:
        for task in chosen:
            options: dict[str, Any] = {"style": style, "haystack": haystack}
            options["files"] = files or _sample(task, Path(folder))
            try:
                prompt = task(tokenizer, sizes[0], seed, depth, **options)
            except Unfit:
                if name is not None:
                    raise
                prompt = None  # the list goes on
            shown.append((task, prompt))
    if as_json:
        entries = [_entry(task, prompt, tokenizer) for task, prompt in shown]
        typer.echo(json.dumps({"tasks": entries}, ensure_ascii=False))
    elif name is not None and shown[0][1] is not None:
        _render(shown[0][0], shown[0][1], tokenizer)
    else:
        for task, prompt in shown:
            _list(task, prompt, tokenizer)


def _sample(task: Task, folder: Path) -> Path | None:
    """A file of our own writing for a task that asks about the user's."""
    if task.sample is None:
        return None
    path = folder / f"{task.name}.json"
    path.write_text(json.dumps(task.sample()), encoding="utf-8")
    return path


def _entry(task: Task, prompt: Prompt | None, tokenizer: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": task.name,
        "summary": task.summary,
        "rule": task.rule,
        "whole": task.whole,
        "budget": task.budget,
        "source": task.source,
        "control": task.control,
        "files": task.files,
    }
    if prompt is not None:
        entry["example"] = {
            "text": tokenizer.decode(list(prompt.ids)),
            "length": prompt.length,
            "seed": prompt.seed,
            "expected": list(prompt.expected),
            "needles": [list(span) for span in prompt.needles],
            "depth": prompt.depth,
            "unique_share": prompt.unique_share,
            "overlap": prompt.overlap,
            "padding": prompt.padding,
        }
    return entry


def _measured(prompt: Prompt) -> str:
    parts = [f"{len(prompt.ids)} tokens and {prompt.budget} for the answer", f"unique runs {prompt.unique_share:.0%}"]
    if prompt.overlap is not None:
        parts.append(f"words of the question in its needle {prompt.overlap:.0%}")
    if prompt.needles:
        parts.append(f"needle at {', '.join(str(start) for start, _ in prompt.needles)}")
    return "; ".join(parts)


def _scored(task: Task) -> str:
    return f"scores {task.rule}, {'whole words' if task.whole else 'substrings as RULER does'}"


def _files(task: Task) -> str:
    return f"needs --files to be scored, {task.files}; without, a sample of ours is shown"


def _list(task: Task, prompt: Prompt | None, tokenizer: Any) -> None:
    typer.secho(task.name, bold=True)
    typer.echo(f"  {task.summary}\n  {task.source}; {_scored(task)}, {task.budget} answer tokens")
    if task.files is not None:
        typer.echo(f"  {_files(task)}")
    if prompt is None:
        typer.echo("  has no prompt of this length\n")
        return
    text = " ".join(tokenizer.decode(list(prompt.ids)).split())
    typer.echo(f"  {text[:_AROUND]} ... {text[-_AROUND:]}\n  -> {', '.join(prompt.expected)}\n  {_measured(prompt)}\n")


def _render(task: Task, prompt: Prompt, tokenizer: Any) -> None:
    typer.secho(f"{task.name}: {task.summary}", bold=True)
    typer.echo(f"{tokenizer.decode(list(prompt.ids))}\n")
    typer.echo(f"expected ({_scored(task)}): {', '.join(prompt.expected)}\n{_measured(prompt)}")
    if task.files is not None:
        typer.echo(_files(task))
