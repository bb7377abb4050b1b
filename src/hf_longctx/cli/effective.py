"""`hf-longctx effective`: the length that really works, with its interval, stock and patched."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_longctx.cli.job import Job, measuring
from hf_longctx.cli.shared import (
    Attention,
    Config,
    Device,
    Dtype,
    FailUnder,
    Mamba,
    Model,
    NoStock,
    Out,
    Rope,
    Variants,
    asked_limits,
    asked_variants,
    page_of,
    parse_lengths,
)
from hf_longctx.measure.defaults import TASK, TRIALS

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}


@measuring
def effective(
    model: Model,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task", help=f"Repeatable; 'ruler' is its eleven, and qa_1 and qa_2 with --files. [default: {TASK}]"
        ),
    ] = None,
    variant: Variants = None,
    attention: Attention = None,
    rope: Rope = None,
    mamba: Mamba = None,
    lengths: Annotated[str, typer.Option("--lengths", help="The ladder in tokens, k is 1024.")] = "1k,2k,4k,8k,16k",
    budget: Annotated[str | None, typer.Option("--budget", help="Time for all variants: 90s, 30m, 2h.")] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", help=f"Most trials of a length. [default: {TRIALS}; 5 with --fixed]")
    ] = None,
    bisections: Annotated[
        int | None, typer.Option("--bisections", help="Halvings of the gap below the first failure. [default: 2]")
    ] = None,
    confidence: Annotated[float | None, typer.Option("--confidence", help="Of the interval. [default: 0.95]")] = None,
    fixed: Annotated[
        bool, typer.Option("--fixed", help="Ask every length --trials times: scores, and no effective length.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same token ids.")] = 0,
    haystack: Annotated[
        str | None,
        typer.Option("--haystack", help="Natural text: kjv, prose, filler or a folder. [default: prose; demo: kjv]"),
    ] = None,
    files: Annotated[list[str] | None, typer.Option("--files", help="TASK=FILE, for qa_1 and qa_2.")] = None,
    style: Annotated[str, typer.Option("--style", help="prefix, chat or base.")] = "prefix",
    dtype: Dtype = None,
    device: Device = None,
    out: Out = None,
    no_stock: NoStock = False,
    config: Config = None,
    fail_under: FailUnder = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON document.")] = False,
) -> Job:
    """Climb a ladder of lengths until a sequential test says where a model stops working.

    Raises:
        ValueError: Settings that cannot work, or a folder that holds another run.
        typer.Exit: With 1, if what --fail-under asks for is not reached.
    """
    from hf_longctx.hf.loading import BUNDLED, DEMO
    from hf_longctx.measure.climb import run_effective
    from hf_longctx.measure.effective import Climb
    from hf_longctx.measure.evaluate import run_tasks
    from hf_longctx.measure.haystack import default_haystack, open_haystack
    from hf_longctx.measure.prompts import STYLES
    from hf_longctx.measure.tasks import REGISTRY, RULER, find

    # Read before the model is: a slip of the pen should not cost half a minute.
    ladder, seconds = parse_lengths(lengths), None if budget is None else parse_budget(budget)
    given_files = parse_files(files or [])
    ruler = [name for name in RULER if REGISTRY[name].files is None or name in given_files]
    asked = [name for given in (task or [TASK]) for name in (ruler if given == "ruler" else [given])]
    for name in asked:
        if find(name).files is not None and name not in given_files:
            raise ValueError(f"--task {name} reads a file of yours, {find(name).files}: give --files {name}=FILE")
    for name, path in given_files.items():
        if find(name).files is None:
            raise ValueError(f"--files names the task {name!r}, which reads no file: leave it out")
        if not Path(path).is_file():
            raise ValueError(f"--files {name}={path}: no such file")
    if style not in STYLES:
        raise ValueError(f"--style {style!r} does not exist: choose one of {', '.join(STYLES)}")
    search: dict[str, Any] = {"budget": seconds, "bisections": bisections, "confidence": confidence}
    search = {name: value for name, value in search.items() if value is not None}
    if fixed and search:
        raise ValueError(f"--{min(search)} belongs to the search for the effective length: leave it or --fixed out")
    trials = (5 if fixed else TRIALS) if trials is None else trials
    ascending = tuple(sorted(set(ladder)))
    Climb(ascending, trials, **{name: value for name, value in search.items() if name != "budget"})
    chosen = asked_variants(variant, attention, rope, mamba)
    return Job(
        model=model,
        run=run_tasks if fixed else run_effective,
        options={
            "tasks": asked,
            "lengths": ladder,
            "trials": trials,
            **search,
            "variants": chosen,
            "stock": not no_stock,
            "seed": seed,
            "haystack": open_haystack(haystack or (default_haystack() if model == DEMO else None)),
            "files": given_files,
            "style": style,
            "model_name": BUNDLED if model == DEMO else model,
        },
        on_row=_line,
        show=_show,
        out=out,
        as_json=as_json,
        dtype=dtype,
        device=device,
        limits=asked_limits(fail_under, model, chosen, stock=not no_stock, kind="tasks" if fixed else "effective"),
    )


def parse_budget(text: str) -> float:
    """Read a time such as `90s`, `30m` or `1.5h`.

    Args:
        text: a number and a unit; seconds without one.

    Returns:
        Seconds, above 0.

    Raises:
        ValueError: for anything else.

    >>> parse_budget("30m"), parse_budget("1.5h"), parse_budget("90")
    (1800.0, 5400.0, 90.0)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if match is None or float(match[1]) == 0:
        raise ValueError(f"--budget {text!r} is no time: write a number above 0 with s, m or h, such as 30m")
    return float(match[1]) * _SECONDS[match[2]]


def parse_files(given: list[str]) -> dict[str, str]:
    """Read `TASK=FILE` pairs.

    Args:
        given: the pairs.

    Returns:
        Task to file.

    Raises:
        ValueError: for a text without `=`, or a task given twice.

    >>> parse_files(["qa_1=squad.json"])
    {'qa_1': 'squad.json'}
    """
    found: dict[str, str] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or not path or name in found:
            raise ValueError(f"--files {text!r}: write TASK=FILE, once a task, such as qa_1=squad.json")
        found[name] = path
    return found


def _line(row: dict[str, Any]) -> None:
    """One line on stderr for each prompt: the first result appears long before the last."""
    if row["kind"] != row["task"]:
        return
    score = row["reason"] if row["score"] is None else f"{row['score']:.2f}"
    typer.echo(
        f"{row['variant']:<12} {row['length']:>9,} tokens  {row['task']:<18} trial {row['trial'] + 1:<3} {score}  "
        f"{row.get('seconds', 0):.1f} s",
        err=True,
    )


def _show(summary: dict[str, Any], out: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    from hf_longctx.measure.finding import left_open, unsettled_text
    from hf_longctx.measure.heatmap import length_label

    def label(length: int | None) -> str:
        return "-" if length is None else length_label(length)

    console = Console()
    for name, entry in summary["variants"].items():
        found = entry["effective"]
        table = Table(title=f"{name}, claims {label(entry['claimed'])}", title_justify="left")
        for column in ("length", "trials", "score", "sure to be in", *found):
            table.add_column(column)
        scored = {row["length"]: row for row in entry["lengths"]}
        # Every rung, also of a variant that got no time: what was not asked is not left out.
        rungs = {int(length) for effect in found.values() for length in (*effect["verdicts"], *effect["unsettled"])}
        for length in sorted({*scored, *rungs}):
            row = scored.get(length, {"n": 0, "score": None, "low": 0.0, "high": 1.0})
            calls = [effect["verdicts"].get(str(length), "not asked") for effect in found.values()]
            score = "-" if row["score"] is None else f"{row['score']:.3f}"
            spread = f"{row['low']:.2f} to {row['high']:.2f}"
            table.add_row(label(length), str(row["n"]), score, spread, *calls)
        console.print(table)
        for rule, effect in found.items():
            console.print(
                f"{asked(rule, effect, entry, label)}: {said(effect, label)}{left_open(effect, entry)}",
                highlight=False,
                soft_wrap=True,
            )
            for line in unsettled_text(effect):
                console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
            console.print(f"  {curve_said(effect['curve'])}", highlight=False, soft_wrap=True)
        console.print(f"controls: {entry['control']['note']}", highlight=False, soft_wrap=True)
    for task, text in summary["text"].items():
        shares = {key: "none" if text[key] is None else f"{text[key]:.0%}" for key in text}
        console.print(
            f"{task}: {shares['unique_share']} of its runs of 8 tokens are distinct; needles hold "
            f"{shares['overlap']} of their questions' words",
            highlight=False,
            soft_wrap=True,
        )
    for pair in summary["paired"]:
        for row in pair["lengths"]:
            line = (
                f"{pair['other']} against {pair['first']} at {label(row['length'])}: of {row['prompts']} prompts, "
                f"{row['only_other']} solved by {pair['other']} alone, {row['only_first']} by {pair['first']} alone, "
                f"p {row['p']:.3g}"
            )
            if row["difference"] is not None:
                line += f"; mean score {row['difference']:+.3f}, {row['low']:+.2f} to {row['high']:+.2f}"
            console.print(line, highlight=False, soft_wrap=True)
    for line in page_of(out):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def asked(rule: str, effect: dict[str, Any], entry: dict[str, Any], label: Any) -> str:
    """A rule with what it asks for.

    >>> asked("own", {"threshold": 0.765}, {"lengths": [{"length": 1024}]}, str)
    'own (0.85 of its 0.900 at 1024)'
    """
    from hf_longctx.measure.effective import RULES

    if rule == "absolute":
        return f"{rule} (a score of {RULES[rule]})"
    if effect["threshold"] is None or not entry["lengths"]:
        return f"{rule} ({RULES[rule]} of its score at the shortest length)"
    base = effect["threshold"] / RULES[rule]
    return f"{rule} ({RULES[rule]} of its {base:.3f} at {label(entry['lengths'][0]['length'])})"


def curve_said(curve: dict[str, float | None]) -> str:
    """Where the fitted curve falls below the rule's line: None is past the longest length, 0 below the shortest.

    >>> curve_said({"length": 5120.4, "low": 4500.0, "high": None})
    'fitted curve: falls below it near 5,120 tokens, 4,500 to past the longest (bootstrap over seeds, no promise)'
    >>> curve_said({"length": 0, "low": 0, "high": 0})
    'fitted curve: falls below it below the shortest, in every draw (bootstrap over seeds, no promise)'
    """

    def place(length: float | None) -> str:
        return "past the longest" if length is None else f"{length:,.0f}" if length else "below the shortest"

    where = place(curve["length"])
    near = f"near {where} tokens" if curve["length"] else where
    low, high = place(curve["low"]), place(curve["high"])
    spread = f"{low} to {high}" if low != high else "in every draw" if low == where else low
    return f"fitted curve: falls below it {near}, {spread} (bootstrap over seeds, no promise)"


def said(effect: dict[str, Any], label: Any) -> str:
    """An effective length with its interval in words.

    >>> found = {"low": 4096, "high": 8192, "confidence": 0.95, "share_of_claimed": 0.5, "needed": {}}
    >>> said(found, str)
    'at least 4096, below 8192 (95% interval); shown to work: 50% of what is claimed'
    """
    low, high = effect["low"], effect["high"]
    ends = [f"at least {label(low)}"] if low is not None else []
    ends += [f"below {label(high)}"] if high is not None else []
    more = [f"{count} more full scores in a row at {label(int(length))}" for length, count in effect["needed"].items()]
    needs = f"{' and '.join(more[:1])} would pass it, with a higher --trials or --budget" if more else ""
    if not ends:
        passed = any(call == "pass" for call in effect["verdicts"].values())
        why = "no length counts before all shorter ones pass" if passed else "no length has passed or failed yet"
        return f"undecided: {why}{'; ' if needs else ''}{needs}"
    share = effect["share_of_claimed"]
    tail = f"; shown to work: {share:.0%} of what is claimed" if share is not None else ""
    tail += f"; {needs}" if needs else ""
    return f"{', '.join(ends)} ({effect['confidence']:.0%} interval){tail}"
