"""Can I write an attention pattern of my own? One class with one method, used like the built-in ones.

python examples/add_your_own_pattern.py demo
"""

import sys
from dataclasses import dataclass

import torch
from torch import Tensor

import hf_longctx as lc
from hf_longctx.patterns import Pattern, SlidingWindow


@dataclass(frozen=True)
class Fence(Pattern, name="fence"):
    """Each token sees every `step`-th token of its document."""

    step: int

    def allows(self, q: Tensor, k: Tensor, *, layer: int = 0, head: int = 0) -> Tensor:
        return k % self.step == 0


pattern = Fence(4) | SlidingWindow(3)
print(f"{pattern}: {pattern.count(1000):,} of {1000 * 1001 // 2:,} pairs")
print(pattern.grid(12))

model, tokenizer = lc.load_model(sys.argv[1] if len(sys.argv) > 1 else "demo")
ids = tokenizer("The quick brown fox jumps over the lazy dog. " * 4, return_tensors="pt").input_ids
with torch.no_grad():
    stock = model(ids).logits
    with lc.patched(model, attention=f"0,-1=full;*={pattern}"):
        print(lc.describe(model))
        patched = model(ids).logits
    same = torch.equal(model(ids).logits, stock)
print(f"logits moved by {(patched - stock).abs().max():.2f}; after unpatching they are the same: {same}")
