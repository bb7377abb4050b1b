"""How fast is attention under a pattern, and how close to the cost of the pairs that it sees?

Times `attend(backend="tiled")` under every pattern beside what else could be called for the same result
(`peers.py`): causal SDPA with repeated keys, SDPA under the pattern as a mask (what transformers does), compiled
FlexAttention (its block mask and its compilation apart), and the dense float32 reference where it fits. The shape is
SmolLM2-135M's: 9 query and 3 key-value heads of 64. All patterns of a length take turns in the same rounds, and the
median of each counts, so that a change of the machine's load hits all alike. `pairs` is the share of causal
attention's pairs that the pattern sees; `x pairs` is our time over pairs x causal's; `limit` is 1.5 x pairs x causal +
5% of causal, 8% for patterns with random or strided in them; `memory` is the most extra memory over the bytes of q,
k, v and out (and of their gradients).

    python evals/bench/attention.py --plot evals/results/attention-cpu.png
    python evals/bench/attention.py --lengths 4k --patterns window:256 --modes forward --out ""
    python evals/bench/attention.py --modes decode --lengths 32k --clock cpu --threads 1 --out ""
    python evals/bench/attention.py --clock cpu --threads 1 --lengths 16k   # steadier while others use the machine
    python evals/bench/attention.py --device cuda --dtype bfloat16

`--modes decode` times one token against a cache of that length instead, beside SDPA over all of its keys with the
query heads of a group as rows, which is how transformers decodes. The cache grows by a token from call to call, up to
the length, at which blocks and segments are full. Which keys are read is worked out anew in each call; the layers of a
model share that.

With `--device cuda` every backend that can is timed, by CUDA events. That part has not yet been run on a GPU.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peers
import torch
from rounds import Runs, extra_bytes, machine, once, rounds
from torch.nn.functional import scaled_dot_product_attention

from hf_longctx.attention import attend, check_backend
from hf_longctx.cli.shared import parse_lengths
from hf_longctx.patterns import Full, Heads, parse

QUERY_HEADS, KV_HEADS, SIZE = 9, 3, 64
DECODE = "decode"
MODES = ("forward", "forward+backward")
#: Patterns whose decoding is timed besides.
DECODED = [
    "global:4",
    "dilated:512,4",
    "fixed:128,32",
    "mistral",
    "streaming",
    "longformer",
    "heads(window:1024|strided:128,128|full)",
]
#: Tokens decoded in a round.
TOKENS = 8
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
    "block:512,1",
    "block:4096",
    "random:3,64",
    "random:3,64+window:128",
    "bigbird",
    "sparse_transformer",
    "segment:4096,4",
    "longnet",
    "dilated:512,4+block:256,1",
]
#: Up to this length a round to warm up comes first; longer ones find everything warm.
WARMED = 16384


def main() -> None:
    """Measure, print a table, save the numbers after each row."""
    args = arguments()
    results: list[dict[str, Any]] = []
    commands = [shlex.join(["python", "evals/bench/attention.py", *sys.argv[1:]])]
    if args.resume and args.out and Path(args.out).is_file():
        earlier = json.loads(Path(args.out).read_text())
        results, commands = earlier["results"], list(dict.fromkeys(earlier["commands"] + commands))
    done = {(row["tokens"], row["mode"], row["pattern"]) for row in results}
    columns = ("ours", "causal", "masked", "flex", "pairs", "x pairs", "limit", "memory")
    print(f"{'tokens':>7} {'pattern':<26} " + " ".join(f"{c:>8}" for c in columns))
    for length in parse_lengths(args.lengths):
        for mode in args.modes:
            patterns = args.patterns or PATTERNS + (DECODED if mode == DECODE else [])
            texts = [text for text in patterns if (length, mode, text) not in done]
            print(f"{length:7} {mode}")
            run = decoded if mode == DECODE else measure
            for row in run(length, mode, texts, args) if texts else ():
                results.append(row)
                show(row, args)
                if args.out:
                    save(Path(args.out), results, commands, args)
    if args.plot:
        from attention_plot import draw

        draw(results, Path(args.plot))
        print(f"drew {args.plot}")


def arguments() -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="2k,4k,8k,16k,32k,64k,128k", help="tokens, separated by commas")
    parser.add_argument("--patterns", nargs="+", help="text forms, instead of the usual ones")
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=(*MODES, DECODE))
    parser.add_argument("--repeats", type=int, default=5, help="rounds, at most")
    parser.add_argument(
        "--seconds", type=float, default=60, help="fewer rounds if they would take longer, and no memory"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--clock", choices=["wall", "cpu", "cuda"], help="which time to take")
    parser.add_argument("--threads", type=int, default=0, help="threads for torch, 0 for its own choice")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument(
        "--flex", help="the only lengths at which to compile FlexAttention, '' for none; wherever it fits if left out"
    )
    parser.add_argument("--no-masked", action="store_true", help="leave out SDPA under a mask, the slow one")
    parser.add_argument("--resume", action="store_true", help="keep the rows that --out holds already")
    parser.add_argument("--plot", help="PNG to draw")
    parser.add_argument(
        "--out", help="file for the numbers, '' for none; evals/results/attention-DEVICE.json if left out"
    )
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device is cuda, but torch finds no CUDA device: use --device cpu")
    args.clock = args.clock or ("cuda" if args.device == "cuda" else "wall")
    args.out = f"evals/results/attention-{args.device}.json" if args.out is None else args.out
    args.flex = parse_lengths(args.lengths if args.flex is None else args.flex) if args.flex != "" else []
    if args.threads:
        torch.set_num_threads(args.threads)
    return args


def measure(length: int, mode: str, texts: list[str], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows of all patterns at one length: median seconds of ours, of the other backends on CUDA, and of the peers."""
    backward = mode == MODES[1]
    rng = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, heads, length, SIZE, generator=rng)
        .to(args.device, getattr(torch, args.dtype))
        .requires_grad_(backward)
        for heads in (QUERY_HEADS, KV_HEADS, KV_HEADS)
    )
    few = peers.few_heads(q, k, v)
    runs: Runs = {"causal": peers.causal(*few)}
    left_out: dict[str, dict[str, str]] = {text: {} for text in texts}
    given_to = {text: few if text == "full" else (q, k, v) for text in texts}
    for text in texts:
        pattern, inputs = parse(text), given_to[text]
        runs[text] = lambda pattern=pattern, inputs=inputs: attend(*inputs, pattern, backend="tiled")
        for backend in ("dense", "flex", "flash") if args.device == "cuda" else ():
            try:
                check_backend(pattern, backend, device=q.device, dtype=q.dtype, needs_grad=backward)
            except ValueError as error:
                left_out[text][backend] = str(error)
            else:
                runs[f"{text} {backend}"] = lambda b=backend, p=pattern: attend(q, k, v, p, backend=b)
    # On CUDA the peers' compilations have thrown ours away.
    warm = length <= WARMED or args.device == "cuda"
    taken = rounds(runs, args.repeats, clock=args.clock, backward=backward, warm=warm, seconds=args.seconds)
    median = {name: statistics.median(each) for name, each in taken.items()}
    base = median["causal"] * (QUERY_HEADS // few[0].shape[1])
    dense = masked_seconds(q, k, v, backward, args)
    no_mask = {} if dense else {"masked": "--no-masked" if args.no_masked else peers.TOO_LARGE}
    for text in texts:
        pattern, inputs = parse(text), given_to[text]
        seconds = median[text] * (QUERY_HEADS // inputs[0].shape[1])
        given = sum(x.numel() * x.element_size() for x in (*inputs, inputs[0])) * (2 if backward else 1)
        pairs = pattern.count(length) / Full().count(length)
        share = 0.08 if "random" in str(pattern) or "strided" in str(pattern) else 0.05
        others, notes = compared(q, k, v, text, backward, args)
        extra = extra_bytes(runs[text], backward) if median[text] <= args.seconds else None  # one more call
        yield {
            "mode": mode,
            "tokens": length,
            "pattern": text,
            "seconds": seconds,
            "heads_timed": inputs[0].shape[1],
            "causal_seconds": base,
            "causal_heads_timed": few[0].shape[1],
            "masked_seconds": dense,
            **others,
            "backends": {name.split()[1]: s for name, s in median.items() if name.startswith(f"{text} ")},
            "pairs": pairs,
            "over_pairs": seconds / (pairs * base),
            "limit_seconds": (1.5 * pairs + share) * base,
            "extra_bytes": extra,
            "extra_over_given": None if extra is None else extra / given,
            "left_out": left_out[text] | no_mask | notes,
            "all_seconds": taken[text],
            "all_causal_seconds": taken["causal"],
        }


@torch.no_grad()
def decoded(length: int, mode: str, texts: list[str], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows of all patterns: median seconds of a token at `length`, beside SDPA over all keys."""
    rng = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, heads, n, SIZE, generator=rng).to(args.device, getattr(torch, args.dtype))
        for heads, n in ((QUERY_HEADS, 1), (KV_HEADS, length), (KV_HEADS, length))
    )
    rows = q.unflatten(1, (KV_HEADS, -1)).flatten(2, 3)
    calls: dict[str, Callable[[int], torch.Tensor]] = {
        "all keys": lambda n: scaled_dot_product_attention(rows, k[:, :, :n], v[:, :, :n])
    }
    for text in texts:
        pattern = parse(text)
        calls[text] = lambda n, pattern=pattern: attend(q, k[:, :, :n], v[:, :, :n], pattern)
    runs: Runs = {
        name: lambda call=call: [call(n + 1) for n in range(length - TOKENS, length)][-1]
        for name, call in calls.items()
    }
    taken = rounds(runs, args.repeats, clock=args.clock, seconds=args.seconds)
    median = {name: statistics.median(each) / TOKENS for name, each in taken.items()}
    for text in texts:
        pattern = parse(text)
        entries = pattern.entries if isinstance(pattern, Heads) else (pattern,)
        seen = [one.count(length) - one.count(length - 1) for one in entries]
        yield {
            "mode": mode,
            "tokens": length,
            "pattern": text,
            "seconds": median[text],
            "all_keys_seconds": median["all keys"],
            "times_as_fast": median["all keys"] / median[text],
            "visible_keys": sum(seen) / len(seen),
            "all_seconds": [s / TOKENS for s in taken[text]],
            "all_all_keys_seconds": [s / TOKENS for s in taken["all keys"]],
        }


def compared(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, text: str, backward: bool, args: argparse.Namespace
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Seconds of the peers that know the pattern, None where one was left out; why it was."""
    pattern, found, notes = parse(text), {}, {}

    def timed(name: str, run: Callable[[], torch.Tensor]) -> None:
        found[name] = best(run, args.clock, backward)

    if run := peers.reference(q, k, v, pattern):
        timed("reference_seconds", run)
    else:
        notes["reference"] = peers.TOO_LARGE
    if args.device == "cuda":
        try:
            timed("flash_attn_seconds", peers.flash_attn(q, k, v, pattern))
        except (ImportError, ValueError, RuntimeError) as error:  # the last for float32
            notes["flash_attn"] = str(error)
    if q.shape[2] in args.flex:
        try:
            flex = peers.flex_attention(q, k, v, pattern, backward)
        except Exception as error:  # a rule that torch cannot trace, no compiler, or no memory
            notes["flex_attention"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        else:
            found["flex_block_mask_seconds"], found["flex_compile_seconds"] = flex.mask_seconds, flex.compile_seconds
            timed("flex_seconds", flex.run)
    else:
        notes["flex_attention"] = "compiled at the lengths of --flex only"
    columns = ("reference_seconds", "flex_seconds", "flex_block_mask_seconds", "flex_compile_seconds")
    return dict.fromkeys(columns) | found, notes


def masked_seconds(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, backward: bool, args: argparse.Namespace
) -> float | None:
    """Seconds under a mask, once for all patterns: the kernel reads every element of it, whatever it says."""
    run = None if args.no_masked else peers.masked(q, k, v, parse("window:1024"))
    return None if run is None else best(run, args.clock, backward)


def best(run: Callable[[], torch.Tensor], clock: str, backward: bool) -> float:
    """The least seconds of five calls, or of as many as two seconds hold, but two."""
    taken: list[float] = []
    while len(taken) < 2 or (len(taken) < 5 and sum(taken) < 2):
        taken.append(once(run, clock, backward))
    return min(taken)


def show(row: dict[str, Any], args: argparse.Namespace) -> None:
    """Print a row."""

    def cell(value: float | None, digits: int = 3) -> str:
        return f"{'-':>8}" if value is None else f"{value:8.{digits}f}"

    if row["mode"] == DECODE:
        print(
            f"{row['tokens']:7} {row['pattern']:<26} {1000 * row['seconds']:8.3f} ms, all keys "
            f"{1000 * row['all_keys_seconds']:.3f} ms: {row['times_as_fast']:.2f}x as fast, "
            f"{row['visible_keys']:.0f} keys",
            flush=True,
        )
        return
    print(
        f"{row['tokens']:7} {row['pattern']:<26} {cell(row['seconds'])} {cell(row['causal_seconds'])} "
        f"{cell(row['masked_seconds'])} {cell(row['flex_seconds'])} {cell(row['pairs'], 4)} "
        f"{cell(row['over_pairs'], 2)} {cell(row['limit_seconds'])} {cell(row['extra_over_given'], 2)} "
        f"{'ok' if row['seconds'] <= row['limit_seconds'] else 'OVER'}",
        flush=True,
    )
    for name, seconds in row["backends"].items():
        print(f"{'':34} {name:<16} {1000 * seconds:9.3f} ms")


def save(path: Path, results: list[dict[str, Any]], commands: list[str], args: argparse.Namespace) -> None:
    """Write the numbers with the commands that made them and what they were measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "what": "attention under each pattern, beside its peers",
        "commands": commands,
        "clock": args.clock,
        "shape": {"query_heads": QUERY_HEADS, "kv_heads": KV_HEADS, "head_size": SIZE, "dtype": args.dtype},
        "machine": machine(),
        "results": results,
    }
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
