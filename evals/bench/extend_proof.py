"""Does RoPE scaling give a model a longer window, and which method needs the fewest steps? Shown from nothing.

A small Llama is trained from random weights on 256 tokens of an induction task: random tokens that repeat with a
period drawn for each row, so that nothing but finding the last occurrence helps. Then it is read at 1,024 tokens,
whose periods are 256 to 512, so that what is looked for is further back than ever in training: unscaled, and under
linear, NTK and YaRN of factor 4, before training and after the same few steps on 1,024 tokens. What is reported is the
share of tokens told right, of those that can be known; mean and 95% interval over seeds, each of which trains a model
of its own. The unscaled model is trained on the same steps, as a control. The literature's order (YaRN needs fewest
steps, linear untrained is worst of the scalings: Peng et al. 2023, arXiv 2309.00071, section 4) is not assumed: the
table says what came out.

    python evals/bench/extend_proof.py --seeds 3
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rounds import machine
from torch import Tensor, nn

import hf_longctx as lc

TRAINED, WINDOW, WORDS = 256, 1024, 512
DEBUG = True
#: Name in the table -> RoPE of the extension; None leaves it.
METHODS = {"unscaled": None, "linear": "linear:4", "ntk": "ntk:4", "yarn": "yarn:4"}
#: Student's t, two-sided 95%, by number of seeds.
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}


def main() -> None:
    """Train, extend, print a table, save the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="models trained from nothing, 1 to 8")
    parser.add_argument("--steps", type=int, default=1500, help="at most, of training from nothing")
    parser.add_argument("--after", default="0,5,10,20,40", help="steps of the extension after which it is read")
    parser.add_argument("--out", default="evals/results/extend-proof.json", help="file for the numbers, '' for none")
    args = parser.parse_args()
    after = [int(part) for part in args.after.split(",")]
    begin = time.perf_counter()
    rows = [row for seed in range(args.seeds) for row in prove(seed, steps=args.steps, after=after)]
    table = summary(rows)
    show(table, after)
    seconds = time.perf_counter() - begin
    print(f"{args.seeds} seeds, {seconds:.0f} s")
    if args.out:
        record = {
            "what": "tokens told right on an induction task of 1,024 tokens by models trained on 256",
            "command": f"python {' '.join(sys.argv)}",
            "machine": machine(),
            "seconds": seconds,
            "summary": table,
            "rows": rows,
        }
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out).write_text(json.dumps(record, indent=2) + "\n")
        print(f"saved {args.out}")


def prove(seed: int, *, steps: int, after: list[int]) -> Iterator[dict[str, Any]]:
    """One model from nothing, and every method on a copy of it: a row for each method and number of steps."""
    base = build(seed)
    taken = train(base, TRAINED, steps, seed=seed, learning_rate=3e-3, rows=16, good=0.99)
    first = accuracy(base, TRAINED, seed=seed)
    for name, rope in METHODS.items():
        model = copy.deepcopy(base)
        if rope is not None:
            lc.patch(model, rope=rope)
        done = 0
        for count in after:
            train(model, WINDOW, count - done, seed=1000 * seed + done + 500, learning_rate=1e-3, rows=4)
            done = count
            yield {
                "seed": seed, "method": name, "rope": rope, "steps": count, "base_steps": taken,
                "base_accuracy": first, "told_right": accuracy(model, WINDOW, seed=seed),
            }  # fmt: skip


def build(seed: int) -> Any:
    """A Llama of two layers, with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=TRAINED,
            use_cache=False,
            tie_word_embeddings=True,
            initializer_range=0.1,
        )  # fmt: skip
    )


def induction(length: int, rows: int, generator: torch.Generator, shortest: int = 4) -> tuple[Tensor, Tensor]:
    """Rows of tokens that repeat, each with a period of its own, log-uniform from `shortest` to half the length.

    The tokens of a period are all different, so that one token is enough to find the last occurrence by.

    Returns:
        ids (rows, length), and labels, which are -100 where a token cannot be known: in the first period.
    """
    share = torch.rand((rows, 1), generator=generator)
    periods = (shortest * (length / 2 / shortest) ** share).long()
    words = torch.rand((rows, WORDS), generator=generator).argsort(-1)
    places = torch.arange(length)[None].expand(rows, -1)
    ids = words.gather(1, places % periods)
    return ids, ids.masked_fill(places < periods, -100)


def train(
    model: Any, length: int, steps: int, *, seed: int, learning_rate: float, rows: int, good: float | None = None
) -> int:
    """Train on fresh rows; stop early once `good` of the tokens are told right. The number of steps taken."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 50 if good else 1.0)
        ids, labels = induction(length, rows, generator)
        loss = model(input_ids=ids, labels=labels).loss
        if DEBUG and step % 50 == 0:
            print(step, float(loss), time.process_time(), flush=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if good and step % 50 == 49:
            found = accuracy(model, length, seed=seed + 1)
            if found >= good:
                return step + 1
            model.train()
    return steps


@torch.no_grad()
def accuracy(model: Any, length: int, *, seed: int, rows: int = 16) -> float:
    """The share of tokens told right, of those that can be known; periods are at least a quarter of the length.

    At 1,024 tokens the last occurrence of a token is thus at least 256 tokens back, further than any that was trained.
    """
    model.eval()
    ids, labels = induction(length, rows, torch.Generator().manual_seed(10_000 + seed), shortest=length // 4)
    told = model(input_ids=ids).logits[:, :-1].argmax(-1) == ids[:, 1:]
    return float(told[labels[:, 1:] >= 0].float().mean())


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and 95% interval (Student's t over seeds, None for a single one) of each method and number of steps."""
    found = []
    for method, steps in dict.fromkeys((row["method"], row["steps"]) for row in rows):
        values = [row["told_right"] for row in rows if (row["method"], row["steps"]) == (method, steps)]
        half = T95[len(values)] * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
        mean = statistics.fmean(values)
        found.append(
            {
                "method": method,
                "steps": steps,
                "seeds": len(values),
                "told_right": mean,
                "interval": None if half is None else [max(0.0, mean - half), min(1.0, mean + half)],
            }
        )
    return found


def show(table: list[dict[str, Any]], after: list[int]) -> None:
    """A line a method, a column for each number of steps."""
    print(f"told right at {WINDOW} tokens by models trained on {TRAINED}, after steps of the extension")
    print(f"{'':>10}" + "".join(f"{count:>20}" for count in after))
    for method in METHODS:
        cells = []
        for row in (row for row in table if row["method"] == method):
            low_high = "" if row["interval"] is None else " [{:.2f}, {:.2f}]".format(*row["interval"])
            cells.append(f"{row['told_right']:.3f}{low_high}")
        print(f"{method:>10}" + "".join(f"{cell:>20}" for cell in cells))


if __name__ == "__main__":
    main()
