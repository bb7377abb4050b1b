"""Peak memory and loss of one training step: `extend`'s against plain Trainer, activations checkpointed on both sides.

Each step runs in a process of its own on the same model, the same sequence (one document, so that plain transformers
needs no mask) and the same optimizer. Memory is what the process held at most from the loaded model on, weights
included: resident memory with freed blocks given back on the CPU, the allocator's count on CUDA. The target is at most
half of plain Trainer's at 8K, with the same loss to 1e-5.

    python evals/bench/training.py --length 8k --tune full
    python evals/bench/training.py --length 1k --out ""
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

SIDES = ("plain", "ours")


def main() -> None:
    """Measure both sides, print a table, save the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="hub id, local folder, or demo")
    parser.add_argument("--length", default="8k", help="tokens of the sequence")
    parser.add_argument("--tune", default="full", choices=["full", "lora", "lora-plus"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", default="evals/results/training.json", help="file for the numbers, '' for none")
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--result", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        Path(args.result).write_text(json.dumps(step(args.child, args)))
        return
    rows = {side: in_child(side, args) for side in SIDES}
    print(f"{'':>6} {'peak MiB':>10} {'over weights':>13} {'seconds':>8} {'loss':>12}")
    for side, row in rows.items():
        peak, over = (row["peak_bytes"] - less for less in (0, row["weight_bytes"]))
        print(f"{side:>6} {peak / 2**20:10,.0f} {over / 2**20:13,.0f} {row['seconds']:8.1f} {row['loss']:12.7f}")
    plain, ours = (rows[side] for side in SIDES)
    print(
        f"ours takes {ours['peak_bytes'] / plain['peak_bytes']:.1%} of plain Trainer's peak at {args.length} "
        f"({args.tune}); the losses differ by {abs(ours['loss'] - plain['loss']):.1e}"
    )
    if args.out:
        record = {
            "what": "peak memory and loss of one training step, beside plain Trainer with checkpointed activations",
            "command": f"python evals/bench/training.py --length {args.length} --tune {args.tune}",
            "machine": machine(),
            "results": rows,
        }
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out).write_text(json.dumps(record, indent=2) + "\n")
        print(f"saved {args.out}")


def in_child(side: str, args: argparse.Namespace) -> dict[str, Any]:
    """One side, in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        given = [f"--{name}={getattr(args, name)}" for name in ("model", "length", "tune", "device")]
        subprocess.run([sys.executable, __file__, *given, f"--child={side}", f"--result={result}"], check=True)
        return json.loads(result.read_text())


def step(side: str, args: argparse.Namespace) -> dict[str, Any]:
    """One optimizer step of one side: `peak_bytes`, `weight_bytes`, `loss`, `seconds`."""
    import hf_longctx as lc
    from hf_longctx.measure.memory import Meter, returning
    from hf_longctx.rope.text import read_length
    from hf_longctx.training.corpus import open_corpus
    from hf_longctx.training.dataset import PackedDataset
    from hf_longctx.training.tiled_loss import tile_loss
    from hf_longctx.training.tuning import make_trainable

    device, length = torch.device(args.device), read_length(args.length)
    with returning():
        start = Meter(device).before
        model, tokenizer = lc.load_model(args.model, dtype="float32", device=device)
        row = next(iter(PackedDataset(open_corpus("prose"), tokenizer, length)))
        if not torch.equal(row["position_ids"], torch.arange(length)):
            raise ValueError(f"--length {args.length}: longer than one generated document; choose a shorter one")
        if side == "ours":
            lc.patch(model, rope="yarn:2", attention="full")
            tile_loss(model)
        else:
            lc.patch(model, rope="yarn:2")
        adapted = make_trainable(model, args.tune, rank=8, alpha=16, seed=0)
        for parameter in model.parameters():  # weights mapped from a file are not in memory before they are read
            parameter.data = parameter.data.clone()
        meter = Meter(device)
        begin = time.perf_counter()
        loss = train(adapted, row, device)
        return {
            "loss": loss,
            "seconds": time.perf_counter() - begin,
            "peak_bytes": meter.peak() - start,
            "weight_bytes": sum(p.numel() * p.element_size() for p in adapted.parameters()),
            "exact": meter.exact,
        }


def train(
    model: Any, row: dict[str, torch.Tensor], device: torch.device, *, steps: int = 1, checkpointing: bool = True
) -> float:
    """Steps by transformers' Trainer, the same on both sides; the first loss."""
    from transformers import Trainer, TrainingArguments

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=1, learning_rate=1e-5, save_strategy="no",
            report_to="none", disable_tqdm=True, use_cpu=device.type == "cpu",
            activation_checkpointing=checkpointing, optim="adamw_torch",
            logging_steps=1, remove_unused_columns=False, bf16=device.type == "cuda",
            dataloader_pin_memory=device.type == "cuda",
        )  # fmt: skip
        batch = {name: value for name, value in row.items() if name != "position_ids"}
        trainer = Trainer(model=model, args=arguments, train_dataset=[batch])
        trainer.train()
        return next(one["loss"] for one in trainer.state.log_history if "loss" in one)


if __name__ == "__main__":
    main()
