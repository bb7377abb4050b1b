"""How do I give a small model twice its window, and see what that changed?

    python examples/extend_smollm2.py demo --to 16k --steps 16

The same as `hf-longctx extend`, from Python. Sequences of 2K tokens with skipped positions (PoSE) teach the
long window, so that two CPU cores are enough: less than an hour, measuring included.
"""

import argparse

from hf_longctx.cli.shared import parse_lengths
from hf_longctx.training import extend
from hf_longctx.training.card import perplexity_rows

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", nargs="?", default="demo", help="hub id, local folder, or 'demo'")
parser.add_argument("--to", default="16k", help="the window asked for")
parser.add_argument("--length", default="2k", help="tokens of a training sequence")
parser.add_argument("--steps", type=int, default=16)
parser.add_argument(
    "--data", default="kjv", help="kjv, prose, a folder or file of text, or a data set's NAME[:CONFIG]"
)
parser.add_argument("--out", default="runs/smollm2-extended")
arguments = parser.parse_args()

[to], [length] = parse_lengths(arguments.to), parse_lengths(arguments.length)
record = extend(
    arguments.model,
    data=arguments.data,
    to=to,
    rope="yarn",
    tune="lora-plus",
    pose=True,
    length=length,
    steps=arguments.steps,
    batch=2,
    out=arguments.out,
)

losses = [row["loss"] for stage in record["stages"] for row in stage["log"]]
print(f"loss on text within the window {record['reference_loss']:.3f}; training {losses[0]:.3f} to {losses[-1]:.3f}")
head, rows = perplexity_rows(record)
for cells in [head, *rows]:
    print("  ".join(f"{cell:>20}" for cell in cells))
print(f"{arguments.out} loads in plain transformers; its README.md says how it was made")
