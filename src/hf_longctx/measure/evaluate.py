"""Ask tasks of a model and its patched variants, a row a prompt, in a folder that a stopped run goes on in.

Tasks differ in all of their prompt, so nothing is shared: each prompt is one chunked prefill and a greedy answer. All
variants get the same token ids. An outcome is `hit` (full score), `miss`, or `invalid` (could not be asked).
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .answer import answer, excerpt
from .controls import CONTROLS, WRONG_KEY, kind_of
from .defaults import CONTROL_EVERY
from .environment import origin
from .grid import check_lengths
from .haystack import Haystack, open_haystack
from .probe import CHUNK
from .processes import here
from .prompts import Codec
from .store import SCHEMA, RunStore
from .subject import as_loaded, identity, learned_positions, look_at, patched_as
from .tally import numbers, pair, scores, texts, unfit
from .tasks import Prompt, Unfit, find
from .variants import Variant, as_variants

OnRow = Callable[[dict[str, Any]], None]

_SEEDS = 1_000_000
"""Trials of one seed; runs with neighbouring seeds share no prompt."""


def prompt_seed(seed: int, trial: int) -> int:
    """The seed of a trial's prompts, from the run's: the same for every variant and wherever they are asked."""
    return seed * _SEEDS + trial


class Evaluation:
    """Tasks, variants, and the rows that there are so far.

    Args:
        model: a Hugging Face causal LM. One that is patched runs as the variant `as-loaded`, beside the model without
            its patch as `stock`; until `close` it is without it.
        tokenizer: its tokenizer.
        tasks: names of tasks; a trial's score is the plain mean of theirs, as in RULER.
        longest: the longest length that will be asked, in tokens.
        variants: what to compare, such as `"yarn2: rope=yarn:2"`.
        stock: whether the untouched model runs first.
        seed: any integer; the same seed gives the same token ids.
        haystack: natural text: `kjv`, `prose`, `filler` or a folder; None takes `prose`.
        files: task name to the user's file, for tasks over one.
        style: `prefix`, `chat` or `base`.
        controls: both controls are asked beside every so manyth trial, from the first, for each task and length (see
            `controls`); 0 for none.
        out: the run's folder; None keeps rows in memory.
        on_row: called with each new row.
        model_name: what reports call the model.
        command: how the user started this.

    Raises:
        ValueError: for settings that cannot work, before the model has run, or a folder with another run.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        tasks: Sequence[str],
        longest: int,
        variants: Iterable[str | Variant] | Mapping[str, Mapping[str, str]] = (),
        stock: bool = True,
        seed: int = 0,
        haystack: str | Haystack | None = None,
        files: Mapping[str, str | Path] | None = None,
        style: str = "prefix",
        controls: int = CONTROL_EVERY,
        out: str | Path | None = None,
        on_row: OnRow | None = None,
        model_name: str | None = None,
        command: str | None = None,
    ) -> None:
        if isinstance(tasks, str) or not tasks:
            raise ValueError(f"tasks={tasks!r}: give a list with at least one name of a task")
        if controls < 0:
            raise ValueError(f"controls={controls}: both are asked beside every so manyth trial; give 0 for none")
        self.tasks = tuple(find(name) for name in dict.fromkeys(tasks))
        self.names = tuple(task.name for task in self.tasks)
        self.files = {name: Path(file) for name, file in (files or {}).items()}
        for name in self.files:
            if find(name).files is None:
                raise ValueError(f"files names the task {name!r}, which reads no file: leave it out")
        self.haystack = haystack if isinstance(haystack, Haystack) else open_haystack(haystack)
        self.seed, self.style, self.controls, self.on_row = seed, style, controls, on_row
        self._model, self._tokenizer, self._codec = model, tokenizer, Codec(tokenizer)
        self._positions = learned_positions(model)
        # A missing file or an unusable style shows here, not after hours.
        for task in self.tasks:
            with contextlib.suppress(Unfit):
                self.prompt(task.name, longest, 0)
        with contextlib.ExitStack() as stack:
            loaded = stack.enter_context(as_loaded(model))
            self.variants = as_variants(variants, stock=stock, loaded=loaded)
            looked_at = {variant.name: look_at(model, variant, longest=longest) for variant in self.variants}
            settings = {
                "kind": "tasks",
                **identity(model, tokenizer, model_name),
                "seed": seed,
                "haystack": self.haystack.name,
                "text": self.haystack.fingerprint,
                "files": {name: _digest(path) for name, path in self.files.items()},
                "style": style,
                "chunk": CHUNK,
                "prompts": 2,  # how tasks draw and score; one more when that changes, so that rows never mix
            }
            command = command or f"hf_longctx.measure.evaluate, tasks {', '.join(self.names)}"
            facts = {
                **origin(command),
                "seed": seed,
                "haystack": {"name": self.haystack.name, "label": self.haystack.label},
            }
            self.store = RunStore(Path(out) if out is not None else None, settings, facts)
            stack.callback(self.store.close)
            for variant in self.variants:
                self.store.add_variant(variant.name, looked_at[variant.name])
            self.store.note_command(command, looked_at)
            self._open = stack.pop_all()
        self._rows = {_place(row): row for row in self.store.rows.values()}

    def close(self) -> None:
        """Let go of the run's folder, and give the model back as it came."""
        self._open.close()

    def prompt(self, task: str, length: int, trial: int, *, control: str | None = None) -> Prompt:
        """The prompt of a trial, the same for every variant; the task draws its depth."""
        return find(task)(
            self._tokenizer,
            length,
            prompt_seed(self.seed, trial),
            style=self.style,
            haystack=self.haystack,
            files=self.files.get(task),
            control=control,
        )

    @contextlib.contextmanager
    def claim(self, *cell: object) -> Iterator[bool]:
        """Keep a cell from other processes, as `RunStore.claim`: what they have asked of it is not asked again."""
        with self.store.claim(*cell) as mine:
            self._rows.update((_place(row), row) for row in self.store.rows.values())
            yield mine

    @contextlib.contextmanager
    def as_variant(self, variant: Variant) -> Iterator[None]:
        """The model patched as a variant, in evaluation mode, for as long as the context lasts."""
        training = bool(getattr(self._model, "training", False))
        self._model.eval()
        try:
            with patched_as(self._model, variant):
                yield
        finally:
            self._model.train(training)

    def ask(self, variant: Variant, length: int, trial: int) -> float | None:
        """The score of a trial, asked if it has no rows yet; the model must be the variant.

        Args:
            variant: what the model is now.
            length: target length in tokens.
            trial: from 0.

        Returns:
            The mean over the tasks, from 0 to 1; None if one of them could not be asked.
        """
        for task in self.tasks:
            # Controls first: a search that goes on takes a trial that has its scored row as done.
            controlled = task.control and self.controls and trial % self.controls == 0
            for control in (*(CONTROLS if controlled else ()), None):
                self._ask(variant.name, task.name, length, trial, control)
        rows = [self._rows[variant.name, name, length, trial] for name in self.names]
        return None if any(row["outcome"] == "invalid" for row in rows) else sum(r["score"] for r in rows) / len(rows)

    def scores(self, variant: str) -> dict[int, list[float | None]]:
        """Length to the score of each trial asked, by ascending length."""
        return scores(self._rows.values(), variant, self.names)

    def unfit(self, variant: str) -> dict[int, str]:
        """Length to the reason why something of it could not be asked."""
        return unfit(self._rows.values(), variant, self.names)

    def summary(self, effective: Callable[[str], Mapping[str, Any]] | None = None) -> dict[str, Any]:
        """What has been found so far; written to the run's folder, if it has one.

        Args:
            effective: gives for a variant's name what `effective_summary.summarise` does.

        Returns:
            The summary, as in `summary.json`.
        """
        return self.store.write_summary(lambda: self._summary(effective))

    def _summary(self, effective: Callable[[str], Mapping[str, Any]] | None) -> dict[str, Any]:
        self._rows.update((_place(row), row) for row in self.store.rows.values())
        run, rows, first = self.store.run, list(self._rows.values()), self.variants[0].name
        keys = ("command", "seed", "settings", "versions", "hardware", "haystack", "started", "climb")
        return {
            "schema": SCHEMA,
            "model": run["settings"]["model"],
            **{key: run[key] for key in keys if key in run},
            "tasks": list(self.names),
            "variants": {
                variant.name: {
                    **run["variants"][variant.name],
                    "effective": dict(effective(variant.name)) if effective else {},
                    **numbers(rows, variant.name, self.names),
                }
                for variant in self.variants
            },
            "text": texts(rows),
            "paired": [pair(rows, first, one.name, self.names, seed=self.seed) for one in self.variants[1:]],
        }

    def report(self) -> None:
        """Write the page of the run's folder, if it has one; the first process does."""
        if self.store.out is not None and here().main:
            from .report import attempt

            attempt(self.store.out)

    # ------------------------------------------------------------------ one prompt

    def _ask(self, variant: str, task: str, length: int, trial: int, control: str | None) -> None:
        kind = kind_of(control, task)
        if (variant, kind, length, trial) in self._rows:
            return
        started = time.perf_counter()
        row: dict[str, Any] = {
            "variant": variant,
            "task": task,
            "kind": kind,
            "trial": trial,
            "length": length,
            "depth": None,
            "outcome": "invalid",
            "score": None,
            "reason": None,
            "answer": None,
            "prompt_tokens": 0,
        }
        if control == WRONG_KEY:
            row["lone"] = find(task).lone
        try:
            prompt = self.prompt(task, length, trial, control=control)
        except Unfit as error:
            self._keep(row | {"reason": str(error)})
            return
        row |= {
            "depth": prompt.depth,
            "expected": list(prompt.expected),
            "question": prompt.question,
            "needles": [list(span) for span in prompt.needles],
            "overlap": prompt.overlap,
            "unique_share": prompt.unique_share,
            "prompt_tokens": len(prompt.ids),
            "context": excerpt(self._codec, prompt),
        }
        if self._positions is not None and length > self._positions:
            self._keep(row | {"reason": f"the model has learned positions for {self._positions} tokens only"})
            return
        found = answer(self._model, self._codec, prompt)
        self._keep(row | found | {"seconds": round(time.perf_counter() - started, 3)})

    def _keep(self, row: dict[str, Any]) -> None:
        self.store.add_row(row)
        self._rows[_place(row)] = row
        if self.on_row is not None:
            self.on_row(row)


def run_tasks(
    model: Any, tokenizer: Any, *, tasks: Sequence[str], lengths: Sequence[int], trials: int = 5, **options: Any
) -> dict[str, Any]:
    """Ask every task at every length, `trials` times, of every variant.

    Args:
        model: a Hugging Face causal LM; one that is patched is patched again in the same way afterwards.
        tokenizer: its tokenizer.
        tasks: names of tasks.
        lengths: target lengths in tokens.
        trials: how often, each with other text, facts and depth.
        **options: as `Evaluation`.

    Returns:
        The summary, as in `summary.json`.

    Raises:
        ValueError: for settings that cannot work, before the model has run, or a folder with another run.
    """
    check_lengths(lengths)
    if isinstance(trials, bool) or not isinstance(trials, int) or trials < 1:
        raise ValueError(f"trials={trials!r}: give a whole number, at least 1")
    work = Evaluation(model, tokenizer, tasks=tasks, longest=max(lengths), **options)
    if "climb" in work.store.run:  # of a search in the same folder, which this is none of
        work.store.note("climb", None)
    with contextlib.closing(work):
        try:
            for variant in work.variants:
                with work.as_variant(variant):
                    for trial in range(trials):
                        with work.claim(variant.name, trial) as mine:
                            for length in sorted(set(lengths)) if mine else ():
                                work.ask(variant, length, trial)
                work.summary()
            work.store.wait()
        finally:
            summary = work.summary()
    work.report()
    return summary


def _place(row: Mapping[str, Any]) -> tuple[str, str, int, int]:
    return row["variant"], row["kind"], row["length"], row["trial"]


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise ValueError(f"files: {str(path)!r} cannot be read ({error.strerror})") from error
