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

from hf_longctx.hf.lengths import held_length, length_dependent

from .environment import origin
from .grid import check_lengths
from .haystack import Haystack, open_haystack
from .probe import CHUNK, Reader, ask, stop_ids
from .prompts import Codec
from .store import SCHEMA, RunStore, write_json
from .subject import check_memory, identity, learned_positions, look_at, patched_as, switches_rope
from .tally import numbers, pair, scores
from .tasks import Prompt, TooShort, find
from .variants import Variant, as_variants

OnRow = Callable[[dict[str, Any]], None]

_SEEDS = 1_000_000
"""Trials of one seed; runs with neighbouring seeds share no prompt."""
_EXCERPT_TOKENS = 40


class Evaluation:
    """Tasks, variants, and the rows that there are so far.

    Args:
        model: a Hugging Face causal LM, not patched. Unchanged afterwards.
        tokenizer: its tokenizer.
        tasks: names of tasks; a trial's score is the plain mean of theirs, as in RULER.
        longest: the longest length that will be asked, in tokens.
        variants: what to compare, such as `"yarn2: rope=yarn:2"`.
        stock: whether the untouched model runs first.
        seed: any integer; the same seed gives the same token ids.
        haystack: natural text: `kjv`, `prose`, `filler` or a folder; None takes `prose`.
        files: task name to the user's file, for tasks over one.
        style: `prefix`, `chat` or `base`.
        controls: of how many trials a prompt without the asked fact is asked as well, for each task and length.
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
        controls: int = 1,
        out: str | Path | None = None,
        on_row: OnRow | None = None,
        model_name: str | None = None,
        command: str | None = None,
    ) -> None:
        if isinstance(tasks, str) or not tasks:
            raise ValueError(f"tasks={tasks!r}: give a list with at least one name of a task")
        self.tasks = tuple(find(name) for name in dict.fromkeys(tasks))
        self.names = tuple(task.name for task in self.tasks)
        self.files = {name: Path(file) for name, file in (files or {}).items()}
        for name in self.files:
            if find(name).files is None:
                raise ValueError(f"files names the task {name!r}, which reads no file: leave it out")
        self.variants = as_variants(variants, stock=stock)
        self.haystack = haystack if isinstance(haystack, Haystack) else open_haystack(haystack)
        self.seed, self.style, self.controls, self.on_row = seed, style, controls, on_row
        self._model, self._tokenizer, self._codec = model, tokenizer, Codec(tokenizer)
        self._positions = learned_positions(model)
        check_memory(model, longest)
        # A missing file or an unusable style shows here, not after hours.
        for task in self.tasks:
            with contextlib.suppress(TooShort):
                self.prompt(task.name, longest, 0)
        looked_at = {variant.name: look_at(model, variant) for variant in self.variants}
        settings = {
            "kind": "tasks",
            **identity(model, tokenizer, model_name),
            "seed": seed,
            "haystack": self.haystack.name,
            "text": self.haystack.fingerprint,
            "files": {name: _digest(path) for name, path in self.files.items()},
            "style": style,
            "chunk": CHUNK,
        }
        facts = {
            **origin(command or f"hf_longctx.measure.evaluate, tasks {', '.join(self.names)}"),
            "seed": seed,
            "haystack": {"name": self.haystack.name, "label": self.haystack.label},
        }
        self.store = RunStore(Path(out) if out is not None else None, settings, facts)
        for variant in self.variants:
            self.store.add_variant(variant.name, looked_at[variant.name])
        self._rows = {_place(row): row for row in self.store.rows.values()}

    def prompt(self, task: str, length: int, trial: int, *, control: bool = False) -> Prompt:
        """The prompt of a trial, the same for every variant; the task draws its depth."""
        return find(task)(
            self._tokenizer,
            length,
            self.seed * _SEEDS + trial,
            style=self.style,
            haystack=self.haystack,
            files=self.files.get(task),
            control=control,
        )

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
            self._ask(variant.name, task.name, length, trial, control=False)
            if task.control and trial < self.controls:
                self._ask(variant.name, task.name, length, trial, control=True)
        rows = [self._rows[variant.name, name, length, trial] for name in self.names]
        return None if any(row["outcome"] == "invalid" for row in rows) else sum(r["score"] for r in rows) / len(rows)

    def scores(self, variant: str) -> dict[int, list[float | None]]:
        """Length to the score of each trial asked, by ascending length."""
        return scores(self._rows.values(), variant, self.names)

    def summary(self, effective: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
        """What has been found so far; written to the run's folder, if it has one.

        Args:
            effective: per variant what `effective.summarise` gives.

        Returns:
            The summary, as in `summary.json`.
        """
        run = self.store.run
        rows, first = list(self._rows.values()), self.variants[0].name
        keys = ("command", "seed", "settings", "versions", "hardware", "haystack", "started")
        summary = {
            "schema": SCHEMA,
            "model": run["settings"]["model"],
            **{key: run[key] for key in keys},
            "tasks": list(self.names),
            "variants": {
                variant.name: {
                    **run["variants"][variant.name],
                    "effective": dict((effective or {}).get(variant.name, {})),
                    **numbers(rows, variant.name, self.names),
                }
                for variant in self.variants
            },
            "paired": [pair(rows, first, one.name, self.names, seed=self.seed) for one in self.variants[1:]],
        }
        if self.store.out is not None:
            write_json(self.store.out / "summary.json", summary)
        return summary

    def report(self) -> None:
        """Write the page of the run's folder, if it has one."""
        if self.store.out is not None:
            from .report import attempt

            attempt(self.store.out)

    def close(self) -> None:
        """Let go of the run's folder; until then no other process can write there."""
        self.store.close()

    # ------------------------------------------------------------------ one prompt

    def _ask(self, variant: str, task: str, length: int, trial: int, *, control: bool) -> None:
        kind = f"control {task}" if control else task
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
        try:
            prompt = self.prompt(task, length, trial, control=control)
        except TooShort as error:
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
            "context": self._excerpt(prompt),
        }
        if self._positions is not None and length > self._positions:
            self._keep(row | {"reason": f"the model has learned positions for {self._positions} tokens only"})
            return
        found = self._answer(prompt)
        self._keep(row | found | {"seconds": round(time.perf_counter() - started, 3)})

    def _answer(self, prompt: Prompt) -> dict[str, Any]:
        import torch

        model = self._model
        by_length, at_once = length_dependent(model), switches_rope(model)
        reader = Reader(model, chunk=prompt.length if at_once else CHUNK)
        held = held_length(model, prompt.length) if by_length else contextlib.nullcontext()
        try:
            with held:
                # Substrings that are found stay found: once the score is full, nothing more can change it.
                reply = ask(
                    reader,
                    prompt.ids,
                    limit=prompt.budget,
                    decode=self._codec.decode,
                    stops=stop_ids(model, self._tokenizer),
                    done=lambda said: prompt.score(said) == 1.0,
                )
        except torch.OutOfMemoryError:
            return {"reason": "out of memory"}
        score = prompt.score(reply.text)
        return {
            "outcome": "hit" if score == 1.0 else "miss",
            "score": score,
            "answer": reply.text,
            "cut": len(reply.ids) == prompt.budget and score < 1.0,
        }

    def _excerpt(self, prompt: Prompt) -> dict[str, str]:
        start, stop = prompt.needles[0] if prompt.needles else (len(prompt.ids), len(prompt.ids))
        decode = self._codec.decode
        return {
            "before": decode(prompt.ids[max(0, start - _EXCERPT_TOKENS) : start]),
            "needle": decode(prompt.ids[start:stop]),
            "after": decode(prompt.ids[stop : stop + _EXCERPT_TOKENS]),
        }

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
        model: a Hugging Face causal LM, not patched. Unchanged afterwards.
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
    with contextlib.closing(work):
        try:
            for variant in work.variants:
                with work.as_variant(variant):
                    for length in sorted(set(lengths)):
                        for trial in range(trials):
                            work.ask(variant, length, trial)
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
