"""Tiny models with Mamba-2 layers, and the plans that make them."""

from __future__ import annotations

import hf_longctx as lc
from families import FAMILIES, build

HYBRIDS = [name for name in FAMILIES if name not in ("gpt_neox", "gpt_oss")]
#: Mamba-2 alone, and with a pattern that drops keys and a scaling on the layers that stay.
PLANS = {
    "mamba": {"mamba": "1"},
    "first": {"mamba": "0,2,init=mamba-in-llama"},
    "all": {"mamba": "1", "attention": "window:6+global:2", "rope": "yarn:2"},
}
GREEDY = {"max_new_tokens": 4, "do_sample": False}


def hybrid(family: str = "llama", plan: str = "mamba", **overrides):
    return lc.patch(build(family, **overrides), **PLANS[plan])
