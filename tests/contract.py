"""The contract matrix: patterns, and the ways in which a model is run. Shared by the CPU's tests and the GPU's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from families import FAMILIES, build, dense, padding, tokens
from hf_longctx.patterns import Full, Global, Heads, Layers, Pattern, SlidingWindow, gallery

LENGTH = 40

#: Every registered pattern (joined with a window where a row could see nothing, which eager attention cannot do), and
#: what patterns are made into.
PATTERNS: dict[str, Pattern | Layers] = {name: pattern | SlidingWindow(1) for name, pattern in gallery()} | {
    "full": Full(),
    "window": SlidingWindow(6),
    "streaming": SlidingWindow(6) | Global(2),
    "heads": Heads([SlidingWindow(4), Full()]),
    "layers": Layers({"0,-1": Full(), "*": SlidingWindow(5) | Global(1)}),
    "some_layers": Layers({"1": SlidingWindow(4)}),
}


@dataclass(frozen=True)
class Case:
    """A way to run a model.

    Attributes:
        side: where the padding is, as in `families.padding`.
        batch: rows.
        steps: how many tokens each forward takes, the last number again and again; all at once, without a cache, if
            empty.
        static: whether the cache is a static one.
        documents: lengths of packed documents, told apart by position ids alone.
    """

    side: str = "none"
    batch: int = 2
    steps: tuple[int, ...] = ()
    static: bool = False
    documents: tuple[int, ...] = ()

    @property
    def holes(self) -> bool:
        """Whether there is padding between the tokens of a row."""
        return "inner" in self.side

    def tensors(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Token ids and the 2-D attention mask, (batch, LENGTH) each."""
        return tokens(self.batch, LENGTH).to(device), padding(self.side, self.batch, LENGTH).to(device)


CASES = {
    "plain": Case(batch=3),
    "left": Case("left", 3),
    "right": Case("right", 3),
    "inner": Case("inner", 3),
    # One token comes to an empty cache, then 25 at once to save time, and the rest one by one.
    "token by token": Case("left", steps=(1, 25, 1)),
    "in chunks": Case("left and inner", steps=(12, 12, 7)),
    "static cache": Case("left and inner", steps=(5, 25, 1), static=True),
    "packed": Case(batch=1, documents=(9, 14, 17)),
}


def case_of(name: str, config) -> Case:
    """A case as a model can run it: with windows of its own, whose static cache counts holes, padding stays left."""
    one = CASES[name]
    return replace(one, side="left") if one.static and getattr(config, "sliding_window", None) else one


def positions(mask: Tensor) -> Tensor:
    """Position ids of real tokens, from 0 in each row."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def single_patterns(name: str) -> list[Pattern]:
    """The patterns in an entry of `PATTERNS`, one for each kind of layer or head."""
    pattern = PATTERNS[name]
    return entries([p for _, p in pattern.plan] if isinstance(pattern, Layers) else [pattern])


def entries(patterns: Iterable[Pattern]) -> list[Pattern]:
    """Those by head split into what each head has."""
    return [one for p in patterns for one in (p.entries if isinstance(p, Heads) else (p,))]


def run(model, case: Case) -> Tensor:
    """Logits (batch, LENGTH, vocabulary) of a patched model, run as the case says."""
    ids, mask = case.tensors(model.device)
    with torch.no_grad():
        if case.documents:
            restarts = torch.cat([torch.arange(n) for n in case.documents])[None].to(model.device)
            return model(ids, position_ids=restarts, use_cache=False).logits
        if not case.steps:
            return model(ids, attention_mask=mask, position_ids=positions(mask)).logits
        cache = (
            StaticCache(config=model.config, max_cache_len=LENGTH + 8)
            if case.static
            else DynamicCache(config=model.config)
        )
        parts, start, steps = [], 0, list(case.steps)
        while start < LENGTH:
            stop = min(start + (steps.pop(0) if len(steps) > 1 else steps[0]), LENGTH)
            step = {"position_ids": positions(mask)[:, start:stop], "past_key_values": cache}
            parts.append(model(ids[:, start:stop], attention_mask=mask[:, :stop], **step).logits)
            start = stop
    return torch.cat(parts, 1)


@lru_cache(maxsize=64)
def _expected(family: str, name: str, case: Case, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    ids, mask = case.tensors(device)
    model = build(family, attention="eager").to(device, dtype)
    parts = ids.split(case.documents, dim=1) if case.documents else (ids,)
    logits = []
    for part in parts:
        valid = mask[:, : part.shape[1]]
        with torch.no_grad(), dense(model, PATTERNS[name], valid):
            logits.append(model(part, attention_mask=valid, position_ids=positions(valid)).logits)
    return torch.cat(logits, 1), mask.bool()


def expected(
    family: str, name: str, case: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Logits of the stock eager model under dense masks, each document by itself, and which tokens are real."""
    one = case_of(case, FAMILIES[family][0]())
    # Steps and caches change how it is run, not what comes out.
    return _expected(family, name, Case(one.side, one.batch, documents=one.documents), device, dtype)
