"""What becomes of my model if some of its attention layers turn into Mamba-2 layers? Converted, run, saved, loaded.

python examples/llama_to_hybrid.py demo
"""

import sys
import tempfile

import torch

import hf_longctx as lc
from hf_longctx.mamba import Mamba2

model, tokenizer = lc.load_model(sys.argv[1] if len(sys.argv) > 1 else "demo")
prompt = tokenizer("In the beginning God created the heaven and the earth. " * 4, return_tensors="pt")


def loss() -> float:
    """Mean surprise at the prompt's own tokens, in nats."""
    with torch.no_grad():
        return float(model(**prompt, labels=prompt.input_ids).loss)


stock = loss()
lc.patch(model, mamba=Mamba2(layers="1::4"), attention="*=window:512+global:4")
print(lc.describe(model))
print(f"loss {stock:.2f} as it was, {loss():.2f} converted: it has to be healed before it is of use")
model.generate(**prompt, max_new_tokens=8, do_sample=False)

with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    again = lc.from_pretrained(folder)  # the original model is not needed
    with torch.no_grad():
        print("loaded again, same logits:", torch.equal(again(**prompt).logits, model(**prompt).logits))

lc.unpatch(model)
print("undone, same loss:", loss() == stock)
