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
    python evals/bench/attention.py --device cuda --dtype bfloat16 --backward

With `--device cuda` every backend that can is timed, by CUDA events, beside flash-attn (where installed), SDPA and
compiled FlexAttention with the pattern's own rule (its block mask and compilation left out), with the most memory that
each takes. That part has not yet been run on a GPU.
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
from rounds import Runs, machine, peak_bytes, rounds
from torch.nn.functional import scaled_dot_product_attention

from hf_longctx.attention import attend, check_backend, flash
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
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--clock", choices=["wall", "cpu", "cuda"], help="which time to take")
    parser.add_argument("--threads", type=int, default=0, help="threads for torch, 0 for its own choice")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--no-masked", action="store_true", help="leave out SDPA under a mask, the slow one")
    parser.add_argument(
        "--out", help="file for the numbers, '' for none; evals/results/attention-DEVICE.json if left out"
    )
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device is cuda, but torch finds no CUDA device: use --device cpu")
    args.clock = args.clock or ("cuda" if args.device == "cuda" else "wall")
    args.out = f"evals/results/attention-{args.device}.json" if args.out is None else args.out
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
            if args.device == "cuda":
                for name, seconds in row["median_seconds"].items():
                    print(f"{'':34} {name:<16} {1000 * seconds:9.3f} ms {row['peak_bytes'][name] / 2**20:9.1f} MiB")
    if args.out:
        save(Path(args.out), results, args)


def measure(pattern: Pattern, length: int, args: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of ours and of the peers, in interleaved rounds; on CUDA of every backend, with peak bytes."""
    rng = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, length, SIZE, generator=rng)
        .to(args.device, getattr(torch, args.dtype))
        .requires_grad_(args.backward)
        for heads in (QUERY_HEADS, KV_HEADS, KV_HEADS)
    )
    runs, refused = {"ours": lambda: attend(query, key, value, pattern, backend="tiled")}, {}
    if args.device == "cuda":
        for backend in ("dense", "flex", "flash"):
            try:
                check_backend(pattern, backend, device=query.device, dtype=query.dtype, needs_grad=args.backward)
            except ValueError as error:
                refused[backend] = str(error)
            else:
                runs[backend] = lambda backend=backend: attend(query, key, value, pattern, backend=backend)
    others, left_out = peers(query, key, value, pattern, args)
    runs, refused = runs | others, refused | left_out
    # The slow one needs no more rounds than it takes to see that it is slow.
    taken = rounds(runs, args.repeats, clock=args.clock, backward=args.backward, fewer=("masked",))
    median = {name: statistics.median(each) for name, each in taken.items()}
    pairs = pattern.count(length) / Full().count(length)
    share = 0.08 if "random" in str(pattern) or "strided" in str(pattern) else 0.05
    return {
        "pattern": str(pattern),
        "tokens": length,
        "seconds": median["ours"],
        "causal_seconds": median["causal"],
        "masked_seconds": median.get("masked"),
        "pairs": pairs,
        "over_pairs": median["ours"] / (pairs * median["causal"]),
        "limit_seconds": (1.5 * pairs + share) * median["causal"],
        "over_masked": median["masked"] / median["ours"] if "masked" in median else None,
        "median_seconds": median,
        "peak_bytes": {name: peak_bytes(run, args.backward) for name, run in runs.items()}
        if args.device == "cuda"
        else None,
        "left_out": refused,
        "all_seconds": taken,
    }


def peers(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: Pattern, args: argparse.Namespace
) -> tuple[Runs, dict[str, str]]:
    """What we are compared with, called as their documentation says, and why one is left out."""
    length, left_out = query.shape[2], {}

    def repeated(**how: Any) -> torch.Tensor:
        k, v = (x.repeat_interleave(QUERY_HEADS // KV_HEADS, dim=1) for x in (key, value))
        return scaled_dot_product_attention(query, k, v, **how)

    runs: Runs = {"causal": lambda: repeated(is_causal=True)}
    if not args.no_masked and length * length <= LARGEST_MASK:
        at = torch.arange(length, device=query.device)
        mask = (pattern.allows(at[:, None], at) & (at <= at[:, None]))[None, None]
        runs["masked"] = lambda: repeated(attn_mask=mask)
    if args.device != "cuda":
        return runs, left_out

    window = flash.window_of(pattern)
    try:
        from flash_attn import flash_attn_func
    except ImportError as error:
        left_out["flash_attn"] = str(error)
    else:
        if window is None:
            left_out["flash_attn"] = "it knows no such pattern"
        else:
            q, k, v = (x.transpose(1, 2) for x in (query, key, value))
            how = {"causal": True, "window_size": (window - 1, 0) if window else (-1, -1)}
            runs["flash_attn"] = lambda: flash_attn_func(q, k, v, **how).transpose(1, 2)

    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def rule(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return pattern.allows(q, k) & (k <= q)

    try:
        torch._dynamo.reset()
        block_mask = create_block_mask(rule, None, None, length, length, device="cuda", _compile=True)
        compiled = torch.compile(flex_attention)
        compiled(query, key, value, block_mask=block_mask, enable_gqa=True)
    except Exception as error:  # a rule that torch cannot trace, or no memory
        left_out["flex_attention"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    else:
        runs["flex_attention"] = lambda: compiled(query, key, value, block_mask=block_mask, enable_gqa=True)
    return runs, left_out


def save(path: Path, results: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Write the numbers with what they were measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "what": "attention forward and backward" if args.backward else "attention forward",
        "command": shlex.join(["python", "evals/bench/attention.py", *sys.argv[1:]]),
        "clock": args.clock,
        "shape": {"query_heads": QUERY_HEADS, "kv_heads": KV_HEADS, "head_size": SIZE, "dtype": args.dtype},
        "machine": machine(),
        "results": results,
    }
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"saved {path}")


if __name__ == "__main__":
    main()
