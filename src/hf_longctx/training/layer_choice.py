"""Which attention layers to convert: each is converted alone, the damage is measured, and the cheapest go first.

Forward passes only. A row of text with a few hidden facts, told again at its end, is read once by the stock model,
which leaves the hidden states before every layer. Then, for one layer after the other, the rest of the model reads on
from there with that layer converted. Two damages are taken from the same reading: the KL of next-token probabilities
against stock, and by how much the loss of the facts' values rises.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_longctx.hf.cache_size import layer_bytes, most_keys, state_bytes, token_bytes
from hf_longctx.hf.layers import attention_modules, plan_layers
from hf_longctx.hf.mixers import form_of, swap
from hf_longctx.hf.patching import is_patched
from hf_longctx.hf.undo import Attributes
from hf_longctx.hf.windows import own_window
from hf_longctx.mamba.mamba2 import Mamba2
from hf_longctx.mamba.mamba2 import parse as parse_mamba
from hf_longctx.patterns.layers import ATTENTION_KINDS, select
from hf_longctx.plan import kinds_of

from .checks import whole
from .corpus import open_corpus
from .layer_texts import LayerText, make_texts
from .student import kl_of_rows, log_probabilities


@dataclass(frozen=True)
class LayerDamage:
    """What converting one layer alone does.

    Attributes:
        index: the layer.
        kl: mean KL(stock || converted) over the compared tokens, in nats.
        needle: rise of the loss of the facts' values, in nats a token; negative where they are told better.
        saved: cache bytes of one sequence that it saves at the budget's length.
    """

    index: int
    kl: float
    needle: float
    saved: int

    @property
    def damage(self) -> float:
        """What layers are ranked by: both damages are nats a token, so they are added."""
        return self.kl + max(0.0, self.needle)


@dataclass(frozen=True)
class LayerChoice:
    """Layers to convert, and why; `str` gives the ranking.

    Attributes:
        mamba: the plan for `patch`.
        chosen: its layers, ascending.
        ranking: all candidates, the least damage for a saved byte first.
        budget_kv: the share of stock's cache that was asked for.
        kept: the share that the choice keeps, states included.
        tokens: the length that the cache is counted at.
        rows: rows of text that were read.
        data: where they are from.
        stock: bytes of stock's cache at that length, of one sequence.
        attention: attention layers of the model, one of which stays.
    """

    mamba: Mamba2
    chosen: tuple[int, ...]
    ranking: tuple[LayerDamage, ...]
    budget_kv: float
    kept: float
    tokens: int
    rows: int
    data: str
    stock: int
    attention: int

    def within(self, budget_kv: float) -> LayerChoice:
        """The choice under another budget, by the same ranking: nothing is measured again.

        Raises:
            ValueError: a budget that no choice reaches.
        """
        _check_budget(budget_kv)
        ranked = [(one.index, one.saved) for one in self.ranking]
        chosen, kept = _greedy(ranked, self.stock, budget_kv, self.attention)
        mamba = dataclasses.replace(self.mamba, layers=",".join(map(str, chosen)))
        return dataclasses.replace(self, mamba=mamba, chosen=chosen, kept=kept, budget_kv=float(budget_kv))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        ranking = [dataclasses.asdict(one) | {"damage": one.damage} for one in self.ranking]
        return dataclasses.asdict(self) | {"mamba": str(self.mamba), "ranking": ranking}

    def __str__(self) -> str:
        lines = ["layer  damage      KL  needle loss  converted"]
        lines += [
            f"{one.index:>5}  {one.damage:>6.3f}  {one.kl:>6.3f}  {one.needle:>+11.3f}  "
            f"{'yes' if one.index in self.chosen else 'no'}"
            for one in self.ranking
        ]
        return "\n".join(
            [
                *lines,
                f"{len(self.chosen)} of {len(self.ranking)} layers keep {self.kept:.0%} of the cache at "
                f"{self.tokens:,} tokens ({self.budget_kv:.0%} asked for); damage in nats a token, each layer "
                f"converted alone, on {self.rows} rows of {self.data}",
                f"mamba={self.mamba}",
            ]
        )

    __repr__ = __str__


def choose_layers(
    model: Any,
    tokenizer: Any,
    *,
    budget_kv: float,
    mamba: str | Mamba2 = "*",
    data: str | Path = "prose",
    length: int = 512,
    rows: int = 8,
    tokens: int | None = None,
    seed: int = 0,
    text_field: str = "text",
    split: str = "train",
) -> LayerChoice:
    """Choose the attention layers whose conversion to Mamba-2 does the least damage, under a budget for the cache.

    Layers are ranked by the damage that each does alone for the bytes that it saves, and converted in that order until
    the cache fits. Damages of layers converted together do not simply add up, and healing mends some more than others;
    nothing here measures that.

    Args:
        model: a causal language model, not patched. Unchanged afterwards.
        tokenizer: its tokenizer.
        budget_kv: share of the stock cache that may be kept, states of the new layers included; above 0, below 1.
        mamba: candidates (a layer selector, or `*` for all attention layers) and options, as for `patch`.
        data: text to read: `kjv`, `prose`, a folder or file, or a data set (`NAME` or `NAME:CONFIG`).
        length: tokens of a row.
        rows: how many.
        tokens: the length at which the cache is counted; None takes the window that the config claims.
        seed: of text, facts and places.
        text_field: where a JSON line or a data set's row has its text.
        split: of a data set.

    Returns:
        The choice.

    Raises:
        ValueError: a patched model, a budget that no choice reaches, or text or rows too short.
    """
    _check_budget(budget_kv)
    if rows < 1:
        raise ValueError(f"rows is {rows}: it must be at least 1")
    if is_patched(model):
        raise ValueError(
            f"{type(model).__name__} is patched: layers are chosen on the original; call hf_longctx.unpatch first"
        )
    plan = parse_mamba(mamba)
    candidates = _candidates(model, plan)
    whole("tokens", tokens)
    if tokens is None:
        tokens = getattr(model.config, "max_position_embeddings", None) or length
    stock, saved = _bytes(model, plan, candidates, tokens)
    attention = len(attention_modules(model))
    order = sorted(candidates, key=lambda index: -saved[index])
    _greedy([(index, saved[index]) for index in order], stock, budget_kv, attention)
    corpus = open_corpus(data, field=text_field, split=split)
    texts = make_texts(corpus.train(seed), tokenizer, length, rows, seed)
    with _as_measured(model):
        damages = _damages(model, plan, candidates, texts)
    measured = [LayerDamage(index, *damages[index], saved[index]) for index in candidates]
    ranking = sorted(measured, key=lambda one: (one.saved <= 0, one.damage / max(one.saved, 1)))
    nothing = LayerChoice(plan, (), tuple(ranking), 1.0, 1.0, tokens, rows, corpus.label, stock, attention)
    return nothing.within(budget_kv)


def _check_budget(budget_kv: float) -> None:
    if isinstance(budget_kv, bool) or not isinstance(budget_kv, int | float) or not 0 < budget_kv < 1:
        raise ValueError(f"budget_kv is {budget_kv!r}: it must be a share above 0 and below 1, such as 0.5")


# -- what it saves


def _candidates(model: Any, plan: Mamba2) -> tuple[int, ...]:
    """The attention layers that the plan's selector names, all of them convertible."""
    modules = attention_modules(model)
    windows = [own_window(modules[i]) if i in modules else None for i in range(int(model.config.num_hidden_layers))]
    kinds = kinds_of(getattr(model.config, "layer_types", None) or (), windows)
    named = [i for i in select(plan.layers, len(kinds), kinds) if i in modules and kinds[i] in ATTENTION_KINDS]
    for index in named:
        form_of(modules[index], plan)  # raises where it cannot be converted
    if not named:
        raise ValueError(f"mamba={str(plan)!r} names no attention layer of {type(model).__name__}: name some, or '*'")
    return tuple(named)


def _bytes(model: Any, plan: Mamba2, layers: Sequence[int], tokens: int) -> tuple[int, dict[int, int]]:
    """Cache bytes of one sequence in the stock model, and what each layer's conversion saves of them."""
    modules, itemsize = attention_modules(model), model.dtype.itemsize
    held = {
        one.index: layer_bytes(
            tokens,
            token_bytes(model.config, itemsize, modules[one.index]),
            most_keys(one, evicting=False),
            evicting=False,
        )
        for one in plan_layers(model, None, "intersect")
        if one.index in modules
    }
    saved = {i: held[i] - state_bytes(form_of(modules[i], plan), itemsize) for i in layers}
    return sum(held.values()), saved


def _greedy(
    ranking: Sequence[tuple[int, int]], stock: int, budget: float, attention: int
) -> tuple[tuple[int, ...], float]:
    """The first layers of a ranking that bring the cache under the budget, and the share that is kept.

    Args:
        ranking: layers with the bytes that each saves, in order.
        stock: bytes of the stock model.
        budget: share of them that may be kept.
        attention: number of attention layers, one of which must stay.

    Raises:
        ValueError: not even all of them do.

    >>> _greedy([(4, 100), (0, 100), (2, -5), (3, 100)], stock=400, budget=0.5, attention=4)
    ((0, 4), 0.5)
    """
    chosen: list[int] = []
    kept = stock
    for index, saved in ranking:
        if kept <= budget * stock or len(chosen) == attention - 1:
            break
        if saved > 0:
            chosen.append(index)
            kept -= saved
    if kept > budget * stock or not chosen:
        raise ValueError(
            f"budget_kv is {budget}, but these layers cannot bring the cache below {kept / stock:.2f} of the stock "
            "model's: one attention layer must stay, and states take room too; ask for more, name more layers in "
            "mamba, or count the cache at a longer length in tokens"
        )
    return tuple(sorted(chosen)), kept / stock


# -- what it breaks


@contextmanager
def _as_measured(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _damages(
    model: Any, plan: Mamba2, layers: Sequence[int], texts: Sequence[LayerText]
) -> dict[int, tuple[float, float]]:
    """Mean KL and mean rise of the values' loss, by layer."""
    kls: dict[int, list[Tensor]] = {index: [] for index in layers}
    rises: dict[int, list[Tensor]] = {index: [] for index in layers}
    for text in texts:
        ids = torch.tensor([text.ids], device=model.device)
        hidden, before = _read(model, ids, layers)
        stock = log_probabilities(model, hidden[0, text.places])
        values = ids[0, [place + 1 for place in text.values]][:, None]
        known = log_probabilities(model, hidden[0, text.values]).gather(1, values)
        for index in layers:
            steps = swap(model, plan, {index})
            try:
                with _from_layer(model, index, before[index]):
                    hidden, _ = _read(model, ids, ())
            finally:
                for step in reversed(steps):
                    step.undo()
            kls[index].append(kl_of_rows(stock, log_probabilities(model, hidden[0, text.places])))
            rises[index].append((known - log_probabilities(model, hidden[0, text.values]).gather(1, values))[:, 0])
    return {
        index: (
            max(0.0, float(torch.cat(kls[index]).double().mean())),
            float(torch.cat(rises[index]).double().mean()),
        )
        for index in layers
    }


def _read(model: Any, ids: Tensor, layers: Sequence[int]) -> tuple[Tensor, dict[int, Tensor]]:
    """The last hidden states (1, L, H), and those before some layers."""
    decoder, before = model.get_decoder(), {}

    def keep(index: int) -> Any:
        def hook(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
            before[index] = args[0] if args else kwargs["hidden_states"]

        return hook

    handles = [decoder.layers[i].register_forward_pre_hook(keep(i), with_kwargs=True) for i in layers]
    try:
        return decoder(input_ids=ids, use_cache=False).last_hidden_state, before
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _from_layer(model: Any, index: int, hidden: Tensor) -> Iterator[None]:
    """Layers below `index` hand on what they are given, and it gets `hidden`: nothing is read twice."""
    layers = model.get_decoder().layers

    def start(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}

    handle = layers[index].register_forward_pre_hook(start, with_kwargs=True)
    skipped = [Attributes(layer, {"forward": _hand_on}) for layer in layers[:index]]
    try:
        yield
    finally:
        handle.remove()
        for step in skipped:
            step.undo()


def _hand_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states
