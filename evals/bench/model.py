"""What a pattern does to a whole model: seconds to read a prompt, tokens a second after it, bytes of cache.

The model runs stock and under each pattern. At each length a random prompt is read in chunks, then tokens are decoded
one at a time at that depth, in rounds that take turns between the variants, so that a change of the machine's load
hits all alike; the median counts. Cache bytes are counted from the tensors and stand beside what `describe` says. What
is timed does not depend on which tokens are read, so lengths may exceed what the model was trained for.

    python evals/bench/model.py
    python evals/bench/model.py --lengths 2k,4k --rounds 3 --out ""
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rounds import machine

import hf_longctx as lc
from hf_longctx.cli.shared import parse_lengths
from hf_longctx.hf.cache_argument import cache_name, cache_of

PATTERNS = ["window:1024+global:4"]
STOCK = "stock"


def main() -> None:
    """Measure, print a table, save the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="hub id, local folder, or demo")
    parser.add_argument("--lengths", default="2k,4k,8k,16k,32k", help="tokens of the prompt, separated by commas")
    parser.add_argument("--patterns", nargs="+", default=PATTERNS, help="text forms")
    parser.add_argument(
        "--no-stock", action="store_true", help="leave the stock model out; its prefill is the slow one"
    )
    parser.add_argument("--chunk", type=int, default=2048, help="tokens of one forward while reading the prompt")
    parser.add_argument("--tokens", type=int, default=16, help="tokens decoded in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--out", help="file for the numbers, '' for none; evals/results/model-DEVICE.json if left out")
    args = parser.parse_args()

    model, _ = lc.load_model(args.model, dtype=args.dtype)
    args.out = f"evals/results/model-{model.device.type}.json" if args.out is None else args.out
    names = ([] if args.no_stock else [STOCK]) + args.patterns
    rows = []
    print(
        f"{'tokens':>7} {'attention':<22} {'prefill s':>10} {'decode tok/s':>13} {'cache bytes':>14} {'described':>14}"
    )
    for length in parse_lengths(args.lengths):
        for row in measure(model, names, length, args):
            rows.append(row)
            print(
                f"{length:7} {row['attention']:<22} {row['prefill_seconds']:10.2f} "
                f"{row['decode_tokens_per_second']:13.2f} {row['cache_bytes']:14,} {row['described_bytes']:14,}",
                flush=True,
            )
    for name in names:
        speeds = [r["decode_tokens_per_second"] for r in rows if r["attention"] == name]
        print(
            f"{name}: decoding at {rows[-1]['tokens']} tokens runs at {speeds[-1] / speeds[0]:.0%} of the first speed"
        )
    if args.out:
        save(Path(args.out), rows, args)


def measure(model: Any, names: list[str], length: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a variant at one length."""
    ids = torch.randint(10, model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    ids = ids.to(model.device)
    caches, prefill, described, counted = {}, {}, {}, {}
    for name in names:
        with variant(model, name):
            described[name] = lc.describe(model).cache_bytes(length)
            start = time.perf_counter()
            caches[name] = read(model, ids, args.chunk)
            wait(model)
            prefill[name] = time.perf_counter() - start
            counted[name] = cache_bytes(caches[name])
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(args.rounds + 1):
        for name in names:
            with variant(model, name):
                taken = decode(model, caches[name], ids[:, -1:], args.tokens)
            if turn:  # the first round warms up
                seconds[name].append(taken)
    return [
        {
            "tokens": length,
            "attention": name,
            "prefill_seconds": prefill[name],
            "prefill_tokens_per_second": length / prefill[name],
            "decode_tokens_per_second": args.tokens / statistics.median(seconds[name]),
            "decode_seconds": seconds[name],
            "cache_bytes": counted[name],
            "described_bytes": described[name],
        }
        for name in names
    ]


def variant(model: Any, name: str) -> Any:
    """The model under a pattern, or as it is."""
    return nullcontext(model) if name == STOCK else lc.patched(model, attention=name)


def wait(model: Any) -> None:
    """Until the device has done what it was given."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()


@torch.no_grad()
def read(model: Any, ids: torch.Tensor, chunk: int) -> Any:
    """Read a prompt (1, L) in chunks; the cache."""
    cache = None
    for start in range(0, ids.shape[1], chunk):
        piece = ids[:, start : start + chunk]
        cache = cache_of(model(piece, use_cache=True, logits_to_keep=1, **{cache_name(): cache}))
    return cache


@torch.no_grad()
def decode(model: Any, cache: Any, token: torch.Tensor, count: int) -> float:
    """Seconds to decode `count` tokens greedily after `token` (1, 1)."""
    start = time.perf_counter()
    for _ in range(count):
        token = model(token, use_cache=True, **{cache_name(): cache}).logits[:, -1:].argmax(-1)
    wait(model)
    return time.perf_counter() - start


def cache_bytes(cache: Any) -> int:
    """Bytes of memory behind the tensors of a cache, each counted once, slack included."""
    storages = {}
    for layer in cache.layers:
        for tensor in (layer.keys, layer.values, getattr(layer, "slots", None)):
            if tensor is not None:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def save(path: Path, rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Write the numbers with what they were measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "what": "prefill, decode and cache of a whole model",
        "command": shlex.join(["python", "evals/bench/model.py", *sys.argv[1:]]),
        "settings": {k: getattr(args, k) for k in ("model", "chunk", "tokens", "rounds", "dtype")},
        "machine": machine(),
        "results": rows,
    }
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"saved {path}")


if __name__ == "__main__":
    main()
