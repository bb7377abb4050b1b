"""The planner's prediction beside the measured peak of a training step, at several lengths.

Each step runs in a process of its own, twice, so that the optimizer's moments are there when the second one has its
peak. Memory is what the process held at most beyond what the libraries take, which a step of a tiny model brings in
beforehand: resident memory with freed blocks given back on the CPU, the allocator's count on CUDA. The target is an
error of at most 15%, of the whole peak. The error of what comes on top of weights, gradients and optimizer is
printed too: they are most of the peak at small lengths, and easily counted.

    python evals/bench/planner.py --lengths 256,512,1k
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rounds import machine

from hf_longctx.cli.shared import parse_lengths
from training import train

TARGET = 0.15


def main() -> None:
    """Measure, predict, print a table, save the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="hub id, local folder, or demo")
    parser.add_argument("--lengths", default="256,512,1k", help="tokens of the sequence")
    parser.add_argument("--tunes", default="lora,lora-plus,full", help="of lora, lora-plus, full")
    parser.add_argument("--no-checkpointing", action="store_true", help="keep all activations")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", default="evals/results/planner.json", help="file for the numbers, '' for none")
    parser.add_argument("--child", nargs=2, metavar=("TUNE", "LENGTH"), help=argparse.SUPPRESS)
    parser.add_argument("--result", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        tune, length = args.child
        Path(args.result).write_text(json.dumps(step(tune, int(length), args)))
        return
    rows = []
    print(
        f"{'tune':>10} {'tokens':>8} {'measured MB':>12} {'predicted MB':>13} "
        f"{'error':>7} {'on top':>8} {'moment':>12}"
    )
    for tune in args.tunes.split(","):
        for length in parse_lengths(args.lengths):
            row = beside(in_child(tune, length, args), tune, length, args)
            rows.append(row)
            print(
                f"{tune:>10} {length:8,} {row['measured_bytes'] / 1e6:12,.0f} {row['predicted_bytes'] / 1e6:13,.0f} "
                f"{row['error']:+7.1%} {row['error_on_top']:+8.1%} {row['moment']:>12}",
                flush=True,
            )
    worst = max(abs(row["error"]) for row in rows)
    print(f"worst error {worst:.1%}; the target is {TARGET:.0%}")
    if args.out:
        keep = " --no-checkpointing" if args.no_checkpointing else ""
        record = {
            "what": "peak memory of a training step, measured and predicted by hf_longctx.training.plan",
            "command": f"python evals/bench/planner.py --lengths {args.lengths} --tunes {args.tunes}{keep}",
            "machine": machine(),
            "results": rows,
        }
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out).write_text(json.dumps(record, indent=2) + "\n")
        print(f"saved {args.out}")


def beside(measured: dict[str, Any], tune: str, length: int, args: argparse.Namespace) -> dict[str, Any]:
    """A measurement and its prediction."""
    from hf_longctx.training import plan

    planned = plan(
        args.model, to=length, tune=tune, device=args.device, checkpointing=not args.no_checkpointing,
    )  # fmt: skip
    # A step is measured, not the reading before and after.
    moment = max((name for name in planned.moments if name != "reading"), key=lambda name: planned.moments[name])
    predicted = planned.moments[moment]
    always = planned.weights + planned.gradients + planned.optimizer
    return measured | {
        "tune": tune,
        "length": length,
        "checkpointing": not args.no_checkpointing,
        "predicted_bytes": predicted,
        "moment": moment,
        "moments": planned.moments,
        "error": predicted / measured["measured_bytes"] - 1,
        "error_on_top": (predicted - always) / (measured["measured_bytes"] - always) - 1,
    }


def in_child(tune: str, length: int, args: argparse.Namespace) -> dict[str, Any]:
    """One measurement, in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        given = [
            f"--model={args.model}",
            f"--device={args.device}",
            f"--result={result}",
            "--child",
            tune,
            str(length),
        ]
        given += ["--no-checkpointing"] if args.no_checkpointing else []
        subprocess.run([sys.executable, __file__, *given], check=True, stdout=subprocess.DEVNULL)
        return json.loads(result.read_text())


def step(tune: str, length: int, args: argparse.Namespace) -> dict[str, Any]:
    """Two optimizer steps: `measured_bytes`, `seconds`, `exact`."""
    import hf_longctx as lc
    from hf_longctx.measure.memory import Meter, returning
    from hf_longctx.training.tiled_loss import tile_loss
    from hf_longctx.training.tuning import make_trainable, to_float32

    device = torch.device(args.device)

    def ready(model: Any) -> Any:
        lc.patch(model, rope="yarn:2", attention="full")
        tile_loss(model)
        adapted = make_trainable(model, tune, rank=8, alpha=16, seed=0)
        if device.type == "cuda":
            to_float32(adapted)
        return adapted

    def run(adapted: Any, words: int, tokens: int) -> None:
        ids = torch.randint(words, (tokens,), generator=torch.Generator().manual_seed(0))
        train(adapted, {"input_ids": ids, "labels": ids}, device, steps=2, checkpointing=not args.no_checkpointing)

    with returning():
        run(ready(tiny().to(device)), 64, 512)  # libraries, threads and buffers that come with a first step
        start = Meter(device).before
        dtype = "bfloat16" if device.type == "cuda" and tune != "full" else "float32"
        adapted = ready(lc.load_model(args.model, dtype=dtype, device=device)[0])
        for parameter in adapted.parameters():  # weights mapped from a file are not in memory before they are read
            parameter.data = parameter.data.clone()
        meter = Meter(device)
        begin = time.perf_counter()
        run(adapted, adapted.config.vocab_size, length)
        return {
            "measured_bytes": meter.peak() - start,
            "seconds": time.perf_counter() - begin,
            "exact": meter.exact,
        }


def tiny() -> Any:
    """A model whose own memory does not count."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=512,
        )  # fmt: skip
    )


if __name__ == "__main__":
    main()
