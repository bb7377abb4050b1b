"""From how many keys does the tiled engine beat one dense call under a mask?

Times `attend(backend="dense")` and `attend(backend="tiled")` in interleaved rounds at 64 to 4096 keys, for a few
patterns, forward or (`--backward`) forward and backward. The crossing point of a pattern is the first length from
which tiled is the faster at every longer one. `auto` goes by what the pattern lowers to (`attention/break_even.py`);
`loss` is the most that its choice takes over the better one, at any of these lengths.

    python evals/bench/break_even.py --out evals/results/break-even-cpu.json
    python evals/bench/break_even.py --clock cpu --threads 1
    python evals/bench/break_even.py --device cuda --dtype bfloat16
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from rounds import machine, rounds

from hf_longctx.attention import attend
from hf_longctx.attention.break_even import CALL, CALL_BY_HEAD, dense_is_faster
from hf_longctx.patterns import Full, parse

QUERY_HEADS, KV_HEADS, SIZE = 9, 3, 64
LENGTHS = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)
PATTERNS = ["full", "window:64", "window:1024+global:4", "dilated:64,4", "strided:64,64", "block:128,1", "bigbird"]


def main() -> None:
    """Measure, print a table and the crossing points, save the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)), help="keys, separated by commas")
    parser.add_argument("--patterns", nargs="+", default=PATTERNS, help="text forms")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--backward", action="store_true", help="time forward and backward together")
    parser.add_argument("--clock", choices=["wall", "cpu", "cuda"], help="which time to take")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=0, help="threads for torch, 0 for its own choice")
    parser.add_argument("--out", default="", help="file for the numbers, '' for none")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device is cuda, but torch finds no CUDA device: use --device cpu")
    args.clock = args.clock or ("cuda" if args.device == "cuda" else "wall")

    lengths, results = sorted(int(n) for n in args.lengths.split(",")), []
    print(
        f"{'pattern':<24}"
        + "".join(f"{n:>8}" for n in lengths)
        + "   tiled wins from, auto from, loss    (cell: dense / tiled)"
    )
    for text in args.patterns:
        rows = [measure(text, n, args) for n in lengths]
        wins, loss = crossing(rows), max(row["auto_over_best"] for row in rows)
        auto = next((row["keys"] for row in rows if row["auto"] == "tiled"), None)
        results.append(
            {"pattern": text, "tiled_wins_from": wins, "auto_from": auto, "auto_over_best": loss, "rows": rows}
        )
        cells = "".join(f"{row['dense_over_tiled']:8.2f}" for row in rows)
        print(f"{text:<24}{cells}   {wins} {auto} {loss:.2f}", flush=True)
    if args.out:
        record = {
            "what": "dense against tiled, " + ("forward and backward" if args.backward else "forward"),
            "command": shlex.join(["python", "evals/bench/break_even.py", *sys.argv[1:]]),
            "clock": args.clock,
            "shape": {"query_heads": QUERY_HEADS, "kv_heads": KV_HEADS, "head_size": SIZE, "dtype": args.dtype},
            "machine": machine(),
            "call_in_pairs": {"all_heads": CALL, "by_head": CALL_BY_HEAD},
            "results": results,
        }
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out).write_text(json.dumps(record, indent=2) + "\n")
        print(f"saved {args.out}")


def measure(text: str, n: int, args: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of both at one length."""
    rng, pattern = torch.Generator().manual_seed(0), parse(text)
    query, key, value = (
        torch.randn(1, heads, n, SIZE, generator=rng)
        .to(args.device, getattr(torch, args.dtype))
        .requires_grad_(args.backward)
        for heads in (QUERY_HEADS, KV_HEADS, KV_HEADS)
    )
    runs = {b: lambda b=b: attend(query, key, value, pattern, backend=b) for b in ("dense", "tiled")}
    taken = rounds(runs, args.repeats, clock=args.clock, backward=args.backward)
    dense, tiled = (statistics.median(taken[b]) for b in ("dense", "tiled"))
    pairs = pattern.count(n) / Full().count(n)
    auto = "dense" if dense_is_faster(pattern, n, n) else "tiled"
    return {
        "keys": n,
        "pairs": pairs,
        "dense": dense,
        "tiled": tiled,
        "dense_over_tiled": dense / tiled,
        "auto": auto,
        "auto_over_best": {"dense": dense, "tiled": tiled}[auto] / min(dense, tiled),
    }


def crossing(rows: list[dict[str, Any]]) -> int | None:
    """The first length from which tiled is the faster at all that follow, or None."""
    wins = None
    for row in reversed(rows):
        if row["dense_over_tiled"] < 1:
            break
        wins = int(row["keys"])
    return wins


if __name__ == "__main__":
    main()
