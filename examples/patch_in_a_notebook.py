"""How do I try a pattern on my model, look at what it does, and get my model back? Each block below is one cell.

python examples/patch_in_a_notebook.py demo
"""

# %% A model, as you load it anyway
import sys

import torch

import hf_longctx as lc
from hf_longctx.patterns import Full, Global, Layers, SlidingWindow

model, tokenizer = lc.load_model(sys.argv[1] if len(sys.argv) > 1 else "demo")
prompt = tokenizer("In the beginning God created the heaven and the earth. " * 8, return_tensors="pt")


def continued() -> str:
    """Eight greedy tokens."""
    out = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    return tokenizer.decode(out[0, prompt.input_ids.shape[1] :])


# %% What it is before
print(lc.describe(model))
print("stock:  ", repr(continued()))

# %% What a pattern would look like, before it touches the model
pattern = SlidingWindow(6) | Global(2)
print(pattern.grid(12))
print(f"{pattern.count(4096) / Full().count(4096):.2%} of the pairs at 4K")

# %% Patched: full attention in the first and the last layer, a window with sinks between, twice the positions
lc.patch(model, attention=Layers({"0,-1": Full(), "*": SlidingWindow(64) | Global(4)}), rope="yarn:2")
print(lc.describe(model))
print("patched:", repr(continued()))

# %% Never twice without undoing: the error says what to do
try:
    lc.patch(model, rope="linear:2")
except ValueError as error:
    print("refused:", error)

# %% Back, bit for bit
with torch.no_grad():
    patched = model(**prompt).logits
    lc.unpatch(model)
    stock = model(**prompt).logits
print(f"logits had moved by {(patched - stock).abs().max():.2f}; back:", repr(continued()))

# %% For one block only
with lc.patched(model, attention="streaming"):
    print("streaming:", repr(continued()))
