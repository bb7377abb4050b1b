"""What does sharing one reading save, and does it change an answer? The needle grid both ways, on the same token ids.

A shared grid reads one context to the longest length and asks on the way; `exact` reads every prompt afresh. Both run
on the same model, seed and needles, and every question is then compared: its verdict and the answer's text. Time is
the processor's (`--threads 1`: other load does not count), beside the clock's. It counts from the first forward call,
so neither loading nor building the prompts is in it. Controls (a question whose needle is not there) are asked by
both; `ratio` leaves those of the exact grid out, since the target speaks of cells.

A run that was interrupted goes on: the exact grid at the next question, the shared one from its beginning.

    python evals/bench/grid.py
    python evals/bench/grid.py --lengths 1k,2k --depths 3 --work runs/grid-small --out ""
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rounds import machine

import hf_longctx as lc
from hf_longctx.cli.shared import parse_lengths
from hf_longctx.measure.controls import CONTROLS, is_control
from hf_longctx.measure.haystack import default_haystack, open_haystack
from hf_longctx.measure.needle import run_needle
from hf_longctx.measure.rows import Key, read_rows, row_files, row_key
from hf_longctx.measure.side_rows import SideRows

TARGET = 8.0
"""Times less than one prefill a cell: DESIGN, section 8."""

MODES = ("shared", "exact")

Rows = dict[Key, dict[str, Any]]


def main() -> None:
    """Run both grids, compare, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="hub id, local folder, or demo")
    parser.add_argument("--attention", help="pattern to patch in, such as window:1024+global:4; default none")
    parser.add_argument("--lengths", default="1k,2k,4k,8k,16k", help="tokens, separated by commas")
    parser.add_argument("--depths", type=int, default=11)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--haystack", help="kjv, prose, filler or a folder; default as for hf-longctx needle")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1, help="threads for torch")
    parser.add_argument("--work", type=Path, default=Path("runs/grid"), help="folder of both runs, to go on from")
    parser.add_argument("--out", default="evals/results/grid-cpu.json", help="file for the numbers, '' for none")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    model, tokenizer = lc.load_model(args.model, dtype=args.dtype)
    if args.attention:
        lc.patch(model, attention=args.attention)
    cells = asked(args)
    for mode in MODES:
        spent = args.work / f"{mode}.clock.jsonl"
        if mode == "shared" and len(rows_of(args.work / mode)) < cells:
            shutil.rmtree(args.work / mode, ignore_errors=True)
            spent.unlink(missing_ok=True)
        args.work.mkdir(parents=True, exist_ok=True)
        clock = Clock(mode, spent, cells, lambda: save(args))
        hook = model.register_forward_pre_hook(clock.begin)
        run_needle(
            model, tokenizer, lengths=parse_lengths(args.lengths), depths=args.depths, seed=args.seed,
            haystack=open_haystack(args.haystack or (default_haystack() if args.model == "demo" else None)),
            exact=mode == "exact", damage=False, progress=False, out=args.work / mode, on_row=clock,
            model_name=args.model, stock=not args.attention,
        )  # fmt: skip
        hook.remove()
    show(save(args))


class Clock:
    """Notes what each question cost as it is answered, and prints a line for it."""

    def __init__(self, mode: str, path: Path, cells: int, done: Any) -> None:
        self._mode, self._side, self._cells, self._done = mode, SideRows(path), cells, done
        self._cpu = self._wall = -1.0

    def begin(self, *_: Any) -> None:
        """Start at the first forward call."""
        if self._cpu < 0:
            self._cpu, self._wall = time.process_time(), time.perf_counter()

    def __call__(self, row: dict[str, Any]) -> None:
        """Take a question's row."""
        self.begin()
        cpu, wall = time.process_time(), time.perf_counter()
        keys = ("variant", "trial", "length", "depth", "kind")
        spent = {"cpu_seconds": round(cpu - self._cpu, 3), "wall_seconds": round(wall - self._wall, 3)}
        self._cpu, self._wall = cpu, wall
        self._side.add({key: row[key] for key in keys} | spent)
        print(
            f"{self._mode:<7} {len(self._side.rows):>3}/{self._cells} {row['length']:>7} tokens, "
            f"depth {row['depth']}: {row['outcome']}, {spent['cpu_seconds']:.1f} s of processor time",
            flush=True,
        )
        if is_control(row):
            self._done()


def rows_of(run: Path) -> Rows:
    """The rows of a run's folder, which may not be there."""
    return {row_key(row): row for path in row_files(run) for row in read_rows(path)[0]}


def save(args: argparse.Namespace) -> dict[str, Any]:
    """What has been found so far, written to `--out`."""
    rows = {mode: rows_of(args.work / mode) for mode in MODES}
    spent = {mode: SideRows(args.work / f"{mode}.clock.jsonl").rows for mode in MODES}
    both = [key for key in rows["shared"] if key in rows["exact"]]
    record = {
        "what": "the shared needle grid against one prefill a cell, on the same token ids",
        "command": shlex.join(["python", "evals/bench/grid.py", *sys.argv[1:]]),
        "settings": {
            key: getattr(args, key) for key in ("model", "attention", "lengths", "depths", "seed", "haystack", "dtype")
        },
        "machine": machine(),
        "finished": bool(rows["shared"]) and len(both) == len(rows["shared"]) == asked(args),
        **{mode: totals(rows[mode], spent[mode]) for mode in MODES},
        **compared(rows, both),
        "rows": [
            {"length": key[2], "depth": key[3], "kind": key[4]}
            | {mode: _one(rows[mode][key], spent[mode].get(key)) for mode in MODES}
            for key in both
        ],
    }
    record["ratio"] = ratios(rows, spent) if record["finished"] else None
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return record


def asked(args: argparse.Namespace) -> int:
    """Questions of one grid, controls included."""
    return len(parse_lengths(args.lengths)) * (args.depths + len(CONTROLS))


def totals(rows: Rows, spent: Rows) -> dict[str, Any]:
    """Seconds and tokens of one grid; `untimed` are rows that an interruption robbed of their time."""
    return {
        "questions": len(rows),
        "untimed": len([key for key in rows if key not in spent]),
        "cpu_seconds": _sum(spent, rows, "cpu_seconds"),
        "wall_seconds": _sum(spent, rows, "wall_seconds"),
        "prefill_tokens": sum(row["prefill_tokens"] for row in rows.values()),
    }


def compared(rows: dict[str, Rows], both: list[Key]) -> dict[str, Any]:
    """In how many cells both grids agree, and how many questions got the same answer, letter by letter."""
    cells = [key for key in both if key[4] == "needle"]
    shared, exact = (rows[mode] for mode in MODES)
    return {
        "cells": len(cells),
        "same_verdict": sum(shared[key]["outcome"] == exact[key]["outcome"] for key in cells),
        "questions": len(both),
        "same_answer": sum(shared[key]["answer"] == exact[key]["answer"] for key in both),
    }


def ratios(rows: dict[str, Rows], spent: dict[str, Rows]) -> dict[str, float]:
    """Exact over shared: the exact grid's cells alone, against all that the shared one asks."""
    cells = {key: row for key, row in rows["exact"].items() if key[4] == "needle"}
    read = [sum(row["prefill_tokens"] for row in some.values()) for some in (cells, rows["shared"])]
    found = {
        clock: _sum(spent["exact"], cells, f"{clock}_seconds")
        / _sum(spent["shared"], rows["shared"], f"{clock}_seconds")
        for clock in ("cpu", "wall")
    }
    return {key: round(value, 2) for key, value in {**found, "prefill_tokens": read[0] / read[1]}.items()}


def _sum(spent: Rows, rows: Rows, key: str) -> float:
    return round(sum(spent[one][key] for one in rows if one in spent), 1)


def _one(row: dict[str, Any], spent: dict[str, Any] | None) -> dict[str, Any]:
    return {key: row[key] for key in ("outcome", "answer", "prefill_tokens")} | {
        "cpu_seconds": spent and spent["cpu_seconds"]
    }


def show(record: dict[str, Any]) -> None:
    """Print what came out."""
    for mode in MODES:
        one = record[mode]
        print(
            f"{mode:<7} {one['questions']} questions, {one['prefill_tokens']:,} tokens read, "
            f"{one['cpu_seconds']:,} s of processor time, {one['wall_seconds']:,} s"
        )
    print(f"same verdict in {record['same_verdict']} of {record['cells']} cells")
    print(f"same answer to {record['same_answer']} of {record['questions']} questions")
    if record["ratio"] is None:
        return print("not finished: the same command goes on")
    met = record["ratio"]["cpu"] >= TARGET and record["same_verdict"] == record["cells"]
    print(f"exact over shared: {record['ratio']}; target {TARGET:g}x and all verdicts: {'met' if met else 'MISSED'}")


if __name__ == "__main__":
    main()
