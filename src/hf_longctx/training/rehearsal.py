"""What a training run can be refused for, tried in seconds before anything long begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_longctx.hf.patching import patch, unpatch
from hf_longctx.measure.variants import STOCK, Variant

from .checkpoints import KEPT, bytes_of, check_disk
from .corpus import Corpus
from .dataset import PackedDataset, held_out_ids
from .recipes import Recipe, Stage
from .tiled_loss import tile_loss, untile_loss
from .trainer import Setup
from .tuning import projections

#: What an AdamW checkpoint holds of a trained parameter: itself and two moments.
_COPIES = 3


@dataclass(frozen=True)
class Rehearsal:
    """What a run is asked for, as `extend` takes it.

    Attributes:
        recipe: the optimizer's settings.
        stages: of the run.
        corpus: its text.
        tune: what is trained.
        attention: pattern while training, or None.
        pose: whether positions skip.
        tile: whether the loss is computed in tiles.
        measure: whether perplexity is measured.
        needle: lengths of the needle test.
        seed: of the run.
        out: its folder.
        report_to: where the trainer logs to.
        save_every: steps between checkpoints.
    """

    recipe: Recipe
    stages: tuple[Stage, ...]
    corpus: Corpus
    tune: str
    attention: str | None
    pose: bool
    tile: bool
    measure: bool
    needle: tuple[int, ...]
    seed: int
    out: Path
    report_to: str
    save_every: int | None

    def check(self, model: Any, tokenizer: Any) -> None:
        """Raise for what could not be carried out; nothing is written, and the model stays as it is.

        Args:
            model: the model, or its skeleton without weights; not patched.
            tokenizer: its tokenizer.

        Raises:
            ValueError: a setting that cannot work, and what to do instead.
            ModuleNotFoundError: a package is missing.
        """
        check_logs(self.report_to)
        for stage in self.stages:
            Setup(self.recipe, stage, self.out, self.save_every, self.report_to, self.seed).arguments()
        self._model(model)
        lengths = [stage.length for stage in self.stages]
        without = "leave measuring out (--no-measure, measure=False)" if self.measure else None
        check_text(self.corpus, tokenizer, lengths, seed=self.seed, without=without)
        if self.needle:
            check_needles(tokenizer, self.needle, self.seed)
        self._disk(model)

    def _model(self, model: Any) -> None:
        """Does it take every stage's patch, and has it what is trained?"""
        if self.tune != "full":
            projections(model)
        if self.tile:
            tile_loss(model)
            untile_loss(model)
        for stage in self.stages:
            patch_stage(model, stage, self.attention, self.pose)
            unpatch(model)

    def _disk(self, model: Any) -> None:
        """Is there room for the result, and for checkpoints of at least LoRA's size?"""
        size = bytes_of(model.parameters())
        trained = _COPIES * (KEPT + 1) * size if self.tune == "full" else 0
        check_disk(self.out, size + trained, "its checkpoints and the result" if trained else "the result")


def patch_stage(model: Any, stage: Stage, attention: str | None, pose: bool) -> str | None:
    """Patch a model for a stage: the engine's full attention, where the model can and nothing else is asked for.

    Returns:
        Why the model is trained with its own attention; None where the engine computes it.

    Raises:
        ValueError: a pattern or scaling that the model cannot take, or skips without the engine.
    """
    try:
        patch(model, rope=stage.rope, attention=attention or "full")
    except ValueError as error:
        if attention is not None or pose:
            raise
        patch(model, rope=stage.rope)
        return str(error)
    return None


def check_text(corpus: Corpus, tokenizer: Any, lengths: Sequence[int], *, seed: int, without: str | None) -> None:
    """Raise unless the text fills a sequence of each length, and some of it is held out where that is measured on.

    Args:
        corpus: the text.
        tokenizer: of the model.
        lengths: of sequences.
        seed: of the run.
        without: what to do to measure nothing, for the error; None where nothing is measured.

    Raises:
        ValueError: too little text.
    """
    for length in dict.fromkeys(lengths):
        next(iter(PackedDataset(corpus, tokenizer, length, seed=seed)))
    if without and len(held_out_ids(corpus, tokenizer, 2)) < 2:
        raise ValueError(
            f"data={corpus.name!r} holds out no text to measure on, since it has too few documents: give more text, "
            f"or {without}"
        )


def check_logs(report_to: str) -> None:
    """Raise unless the trainer can log there.

    Raises:
        ValueError: no such place.
        ModuleNotFoundError: its package is missing.
    """
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    if report_to in ("none", "all"):
        return
    if report_to not in INTEGRATION_TO_CALLBACK:
        known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
        raise ValueError(f"report_to is {report_to!r}: it must be none, all, or one of {known}")
    try:
        INTEGRATION_TO_CALLBACK[report_to]()
    except (RuntimeError, ImportError) as error:
        raise ModuleNotFoundError(f"report_to={report_to!r}: {error}") from error


def check_needles(tokenizer: Any, lengths: Sequence[int], seed: int) -> None:
    """Raise unless a needle test of these lengths can be asked.

    Raises:
        ValueError: no length, or one too short for question and answer.
    """
    from hf_longctx.measure.grid import build_grid
    from hf_longctx.measure.haystack import open_haystack
    from hf_longctx.measure.placement import depth_grid

    grid = build_grid(
        tokenizer, open_haystack(None), lengths=lengths, depths=depth_grid(5), values="digits", mode="shared",
        style="prefix", seed=seed,
    )  # fmt: skip
    for length in grid.lengths:
        reasons = [probe.reason for probe in grid.probes(0) if probe.length == length]
        if all(reasons):
            raise ValueError(f"needle: nothing can be asked at {length} tokens ({reasons[0]}); give longer lengths")


def check_memory(model: Any, lengths: Sequence[int]) -> None:
    """Raise unless the keys and values of the longest needle prompt fit in memory.

    Raises:
        ValueError: they do not.
    """
    from hf_longctx.measure.subject import look_at

    if lengths:
        look_at(model, Variant(STOCK), longest=max(lengths))
