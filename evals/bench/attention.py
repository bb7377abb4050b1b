"""How fast is attention under a pattern, and how close to the cost of the pairs that it sees?

Times `attend(backend="tiled")` beside causal SDPA with repeated keys, and beside SDPA under the pattern as a mask,
which is what transformers does. The shape is SmolLM2-135M's: 9 query and 3 key-value heads of 64. Rounds are
interleaved and the median of each is taken, so that a change of the machine's load hits all alike. `pairs` is the
share of causal attention's pairs that the pattern sees; `x pairs` is our time over pairs x causal's; `limit` is
1.5 x pairs x causal + 5% of causal, 8% for patterns with random or strided in them. `--clock cpu --threads 1` counts
the processor's time instead of the clock's, which is steadier while others use the machine.

    python evals/bench/attention.py
    python evals/bench/attention.py --backward --no-masked --clock cpu --threads 1
    python evals/bench/attention.py --lengths 4096 --patterns window:256 --backward --out ""
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from hf_longctx.attention import attend
from hf_longctx.patterns import Full, Pattern, parse

QUERY_HEADS, KV_HEADS, SIZE = 9, 3, 64
PATTERNS = [
    "full",
    "window:1024",
    "window:1024+global:4",
    "window:256",
    "window:4096",
    "dilated:512,8",
    "dilated:2048,8",
    "strided:128,128",
    "block:256",
    "block:256,1",
    "block:4096",
    "random:3,64",
    "random:3,64+window:128",
    "bigbird",
    "sparse_transformer",
    "segment:4096,4",
    "longnet",
    "dilated:512,4+block:256,1",
]
#: A dense mask in float32 is not made past this many elements.
LARGEST_MASK = 1 << 29


def main() -> None:
    """Measure, print a table, save the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="4096,16384", help="tokens, separated by commas")
    parser.add_argument("--patterns", nargs="+", default=PATTERNS, help="text forms")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--backward", action="store_true", help="time forward and backward together")
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"], help="which time to take")
    parser.add_argument("--threads", type=int, default=0, help="threads for torch, 0 for its own choice")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--no-masked", action="store_true", help="leave out SDPA under a mask, the slow one")
    parser.add_argument("--out", default="evals/results/attention-cpu.json", help="file for the numbers, '' for none")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    results = []
    columns = ("ours", "causal", "masked", "pairs", "x pairs", "limit")
    print(f"{'tokens':>7} {'pattern':<26} " + " ".join(f"{c:>8}" for c in columns))
    for length in (int(n) for n in args.lengths.split(",")):
        for text in args.patterns:
            row = measure(parse(text), length, args)
            results.append(row)
            masked = f"{row['masked_seconds']:8.3f}" if row["masked_seconds"] else f"{'-':>8}"
            print(
                f"{length:7} {text:<26} {row['seconds']:8.3f} {row['causal_seconds']:8.3f} {masked} "
                f"{row['pairs']:8.4f} {row['over_pairs']:8.2f} {row['limit_seconds']:8.3f} "
                f"{'ok' if row['seconds'] <= row['limit_seconds'] else 'OVER'}",
                flush=True,
            )
    if args.out:
        save(Path(args.out), results, args)


def measure(pattern: Pattern, length: int, args: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of ours, causal and masked attention, in interleaved rounds."""
    rng = torch.Generator().manual_seed(0)
    dtype = getattr(torch, args.dtype)
    query, key, value = (
        torch.randn(1, heads, length, SIZE, generator=rng).to(dtype).requires_grad_(args.backward)
        for heads in (QUERY_HEADS, KV_HEADS, KV_HEADS)
    )

    def repeated(**how: Any) -> torch.Tensor:
        k, v = (x.repeat_interleave(QUERY_HEADS // KV_HEADS, dim=1) for x in (key, value))
        return scaled_dot_product_attention(query, k, v, **how)

    runs: dict[str, Callable[[], torch.Tensor]] = {
        "ours": lambda: attend(query, key, value, pattern, backend="tiled"),
        "causal": lambda: repeated(is_causal=True),
    }
    if not args.no_masked and length * length <= LARGEST_MASK:
        at = torch.arange(length)
        mask = (pattern.allows(at[:, None], at) & (at <= at[:, None]))[None, None]
        runs["masked"] = lambda: repeated(attn_mask=mask)
    now = time.perf_counter if args.clock == "wall" else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(args.repeats + 1):
        for name, run in runs.items():
            # The slow one needs no more rounds than it takes to see that it is slow.
            if name == "masked" and turn > 3:
                continue
            start = now()
            out = run()
            if args.backward:
                out.backward(out.detach())
            if turn:
                seconds[name].append(now() - start)
    ours, causal = statistics.median(seconds["ours"]), statistics.median(seconds["causal"])
    pairs = pattern.count(length) / Full().count(length)
    share = 0.08 if "random" in str(pattern) or "strided" in str(pattern) else 0.05
    return {
        "pattern": str(pattern),
        "tokens": length,
        "seconds": ours,
        "causal_seconds": causal,
        "masked_seconds": statistics.median(seconds["masked"]) if "masked" in seconds else None,
        "pairs": pairs,
        "over_pairs": ours / (pairs * causal),
        "limit_seconds": (1.5 * pairs + share) * causal,
        "over_masked": statistics.median(seconds["masked"]) / ours if "masked" in seconds else None,
        "all_seconds": seconds,
    }


def save(path: Path, results: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Write the numbers with what they were measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "what": "attention forward and backward" if args.backward else "attention forward",
        "command": shlex.join(["python", "evals/bench/attention.py", *sys.argv[1:]]),
        "clock": args.clock,
        "shape": {"query_heads": QUERY_HEADS, "kv_heads": KV_HEADS, "head_size": SIZE, "dtype": args.dtype},
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__},
        "results": results,
    }
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"saved {path}")


if __name__ == "__main__":
    main()
