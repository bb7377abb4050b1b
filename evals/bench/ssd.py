"""How fast is the scan of Mamba-2, how much memory does it take, and from which length does linear win?

Times `hf_longctx.mamba.ssd` beside transformers' scan in plain torch, the one a Mamba-2 model runs without CUDA
kernels, on the same tensors and at its default chunk; then `ssd_step` beside its decode step, for several batches.
Causal SDPA and our window of 1024 stand beside them at the same width: 18 heads of 64. Rounds are interleaved and the
median of each is taken, so that a change of the machine's load hits all alike. `--clock cpu --threads 1` counts the
processor's time instead of the clock's, which is steadier while others use the machine. Extra memory is the rise of
the high-water mark of a forked process that makes one call, the result included. A peer that needed more than
`--patience` seconds, or would not fit into memory, is left out from there on, its memory too. Attention has no state:
it is measured with the first state size alone.

A decode step is timed in plain torch and, where numba is installed, in its one pass over the state. In torch one row
is bound by calls: theirs makes 23 and takes 410 us of processor time at state 64, 720 at 128 (one thread, the fastest
of several rounds); ours makes 14 and takes 69 and 91. Three of these pass over the state: decay, write and read, 31
and 55 us together. Compiled by torch.compile the same step takes longer than that: the call of a compiled function
costs more than it saves. From 4 rows on theirs also pays for memory that it asks for and gives back at each token.

    python evals/bench/ssd.py
    python evals/bench/ssd.py --clock cpu --threads 1 --lengths 5,4096 --states 64
    python evals/bench/ssd.py --lengths "" --out ""  # the decode step alone
    python evals/bench/ssd.py --backward --lengths 4096 --peers ours transformers --out ""
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import logging
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rounds import machine
from torch.nn.functional import scaled_dot_product_attention
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan, mamba2_selective_state_update

from hf_longctx.attention import attend
from hf_longctx.mamba import ssd, ssd_step

HEADS, SIZE, WINDOW = 18, 64, "window:1024"
PEERS = ["ours", "transformers", "causal", "window"]
#: Copies of its (tokens, chunk, heads) float32 table that transformers' scan holds at once.
TABLES = 8
#: Seconds after which a run is not repeated.
ENOUGH = 10

logging.getLogger("transformers").setLevel(logging.ERROR)  # it warns that its own path is slow, which is the point


def main() -> None:
    """Measure, print a table, save the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="5,64,512,4096,16384,65536", help="tokens, separated by commas")
    parser.add_argument("--states", default="64,128", help="state sizes, separated by commas")
    parser.add_argument("--batches", default="1,4,16", help="batch sizes of the decode step, separated by commas")
    parser.add_argument("--peers", nargs="+", default=PEERS, choices=PEERS)
    parser.add_argument("--chunk", type=int, default=None, help="tokens of our chunk, our default if left out")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--backward", action="store_true", help="time forward and backward together")
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"], help="which time to take")
    parser.add_argument("--threads", type=int, default=0, help="threads for torch, 0 for its own choice")
    parser.add_argument("--patience", type=float, default=30, help="seconds after which a peer is left out")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory out")
    parser.add_argument("--out", default="evals/results/ssd-cpu.json", help="file for the numbers, '' for none")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    prefill: list[dict[str, Any]] = []
    print(f"{'tokens':>7} {'state':>5} " + " ".join(f"{p + ' s':>14} {'MiB':>7}" for p in args.peers) + "   speed-up")
    for state in (int(n) for n in args.states.split(",")):
        left = [name for name in args.peers if not prefill or name in ("ours", "transformers")]
        for length in (int(n) for n in args.lengths.split(",") if n):
            row = measure(length, state, left, args)
            prefill.append(row)
            cells = [
                f"{number(row['seconds'].get(p), '14.5f')} {number(row['extra_mib'].get(p), '7.1f')}"
                for p in args.peers
            ]
            print(f"{length:7} {state:5} {' '.join(cells)}   {number(row['over_transformers'], '8.1f')}x", flush=True)
            left = [p for p in left if row["seconds"].get(p, 0) <= args.patience]
    steps = []
    kernels = ["torch", "numba"] if importlib.util.find_spec("numba") else ["torch"]
    print(f"\n{'batch':>7} {'state':>5} " + "".join(f"{name + ' us':>16}" for name in [*kernels, "transformers"]))
    for state in (int(n) for n in args.states.split(",")):
        for batch in (int(n) for n in args.batches.split(",")):
            row = measure_step(batch, state, kernels, args)
            steps.append(row)
            cells = [f"{seconds * 1e6:16.1f}" for seconds in row["seconds"].values()]
            ratios = [f"{row['over_transformers'][name]:.1f}x by {name}" for name in kernels]
            print(f"{batch:7} {state:5} {''.join(cells)}   {', '.join(ratios)}", flush=True)
    if args.out:
        save(Path(args.out), prefill, steps, args)


def measure(length: int, state: int, names: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """Median seconds and extra memory of each peer over one sequence."""
    table = TABLES * 4 * HEADS * Mamba2Config().chunk_size * length * (2 if args.backward else 1)
    if table > available() / 2:
        names = [name for name in names if name != "transformers"]
    runs = {name: run for name, run in peers(length, state, args).items() if name in names}
    small = peers(64, state, args)
    times = rounds(runs, args, 1 if length > 512 else 20)
    seconds = {name: statistics.median(t) for name, t in times.items()}
    measured = [] if args.no_memory else [name for name, taken in seconds.items() if taken <= args.patience]
    extra = {name: extra_memory(small[name], runs[name]) / 2**20 for name in measured}
    compared = {"ours", "transformers"} <= set(runs)
    return {
        "tokens": length,
        "state": state,
        "seconds": seconds,
        "extra_mib": extra,
        "over_transformers": seconds["transformers"] / seconds["ours"] if compared else None,
        "largest_difference": difference(runs) if compared else None,
        "all_seconds": times,
    }


def difference(runs: dict[str, Callable[[], torch.Tensor]]) -> float:
    """The largest difference between our output and that of transformers."""
    return float((runs["ours"]().detach() - runs["transformers"]().detach()).abs().max())


def peers(length: int, state: int, args: argparse.Namespace) -> dict[str, Callable[[], torch.Tensor]]:
    """Each peer as a call on tensors of its own."""
    x, dt, A, B, C, D = scanned = tensors(length, state)
    query, key, value = attended = [torch.randn(1, HEADS, length, SIZE) for _ in range(3)]
    chunk = Mamba2Config().chunk_size
    runs: dict[str, Callable[[], torch.Tensor]] = {
        "ours": lambda: ssd(x, dt, A, B, C, D=D, chunk=args.chunk),
        "transformers": lambda: mamba2_chunk_scan(x, dt, A, B, C, chunk, D=D),
        "causal": lambda: scaled_dot_product_attention(query, key, value, is_causal=True),
        "window": lambda: attend(query, key, value, WINDOW),
    }
    if not args.backward:
        return runs
    leaves = [t.requires_grad_() for t in (*scanned, *attended)]
    return {name: with_backward(run, leaves) for name, run in runs.items()}


def measure_step(batch: int, state: int, kernels: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of one decoded token in each of `batch` rows."""
    x, dt, A, B, C, D = (t[:, 0] if t.dim() > 1 else t for t in tensors(1, state, batch))
    ours = {name: torch.zeros(batch, HEADS, SIZE, state) for name in kernels}
    theirs = torch.zeros(batch, HEADS, SIZE, state)
    # As the model hands them over.
    wide = {
        "dt": dt[:, :, None].expand(-1, -1, SIZE),
        "A": A[:, None, None].expand(-1, SIZE, state),
        "D": D[:, None].expand(-1, SIZE),
    }
    with torch.no_grad():
        times = rounds(
            {
                **{name: partial(ssd_step, ours[name], x, dt, A, B, C, D=D, backend=name) for name in kernels},
                "transformers": lambda: mamba2_selective_state_update(theirs, x, B=B, C=C, **wide),
            },
            args,
            max(1, 300 // batch),
        )
    seconds = {name: statistics.median(t) for name, t in times.items()}
    return {
        "batch": batch,
        "state": state,
        "seconds": seconds,
        "over_transformers": {name: seconds["transformers"] / seconds[name] for name in kernels},
        "all_seconds": times,
    }


def tensors(length: int, state: int, batch: int = 1) -> tuple[torch.Tensor, ...]:
    """x, dt, A, B, C and D, with steps and rates as Mamba-2 starts from."""
    rng = torch.Generator().manual_seed(0)
    x, B, C = (torch.randn(batch, length, h, n, generator=rng) for h, n in ((HEADS, SIZE), (1, state), (1, state)))
    dt = 0.001 * 100 ** torch.rand(batch, length, HEADS, generator=rng)
    return x, dt, -(1 + 15 * torch.rand(HEADS, generator=rng)), B, C, torch.ones(HEADS)


def rounds(runs: dict[str, Callable[[], Any]], args: argparse.Namespace, calls: int) -> dict[str, list[float]]:
    """Seconds of a call, for each run in rounds that take turns; the first warms up."""
    now = time.perf_counter if args.clock == "wall" else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(args.repeats + 1):
        for name, run in runs.items():
            if sum(seconds[name]) * calls > ENOUGH:
                continue
            start = now()
            for _ in range(calls):
                run()
            taken = (now() - start) / calls
            if turn or taken * calls > ENOUGH:
                seconds[name].append(taken)
    return seconds


def with_backward(run: Callable[[], torch.Tensor], leaves: list[torch.Tensor]) -> Callable[[], torch.Tensor]:
    """The run and its gradients."""

    def both() -> torch.Tensor:
        for leaf in leaves:
            leaf.grad = None
        out = run()
        out.backward(out.detach())
        return out

    return both


def extra_memory(small: Callable[[], Any], run: Callable[[], Any]) -> int | float:
    """Bytes by which one call raises the high-water mark of a process, after a small one has loaded what it needs.

    NaN where the system does not say (not Linux).
    """
    if not Path("/proc/self/clear_refs").exists():
        return float("nan")
    ctypes.CDLL(None).malloc_trim(0)  # memory that is kept for reuse would hide what the call needs
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # threads do not survive a fork
            small()
            Path("/proc/self/clear_refs").write_text("5")
            before = status("VmHWM")
            kept = run()  # noqa: F841
            os.write(writer, str(status("VmHWM") - before).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return int(told) if told else float("nan")


def status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def available() -> int:
    """Bytes of memory that can be had."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 8 << 30


def number(value: float | None, form: str) -> str:
    """A number, or a dash of the same width."""
    width = int(form.split(".")[0] or 1)
    return f"{'-':>{width}}" if value is None else f"{value:{form}}"


def save(path: Path, prefill: list[Any], steps: list[Any], args: argparse.Namespace) -> None:
    """Write the numbers with what they were measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "what": "state-space scan, " + ("forward and backward" if args.backward else "forward") + ", and decode step",
        "command": shlex.join(["python", "evals/bench/ssd.py", *sys.argv[1:]]),
        "clock": args.clock,
        "shape": {"heads": HEADS, "head_size": SIZE, "groups": 1, "dtype": "float32", "window": WINDOW},
        "machine": machine(),
        "prefill": prefill,
        "step": steps,
    }
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"saved {path}")


if __name__ == "__main__":
    main()
