"""How far does a model really see, and what does a patch change?

    python examples/how_far_does_it_see.py demo --lengths 512 1024

The same as `hf-longctx needle`, from Python.
"""

import argparse

from rich.console import Console

import hf_longctx as lc
from hf_longctx.measure import run_needle
from hf_longctx.measure.finding import finding
from hf_longctx.measure.terminal_table import terminal_table

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", nargs="?", default="demo", help="hub id, local folder, or 'demo'")
parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024], help="tokens")
parser.add_argument("--depths", type=int, default=3)
arguments = parser.parse_args()

model, tokenizer = lc.load_model(arguments.model)
summary = run_needle(
    model,
    tokenizer,
    variants=["yarn2: rope=yarn:2", "window: attention=window:256+global:4"],
    lengths=arguments.lengths,
    depths=arguments.depths,
    haystack="prose",
)
Console().print(terminal_table(summary))
print(finding(summary))
