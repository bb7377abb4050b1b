"""Do layers chosen by measured damage lose less than layers at even distances, under the same budget for the cache?

Layers are ranked once. For each even selection (`1::2`, every other layer) the share of the cache that it keeps is the
budget under which the choice is made. Both are converted, and measured on held-out text (perplexity, KL to stock) and
by needles whose answers are generated. With `--stages` both are healed too, by the same steps, and measured again.

    python evals/bench/layer_choice.py demo --out evals/results/layer-choice.json
    python evals/bench/layer_choice.py demo --even 1::4 --ranking evals/results/layer-choice.json --out ""
    python evals/bench/layer_choice.py demo --stages align:60,match:40 --length 512 --batch 2 --work runs/layer-choice
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from rounds import machine

import hf_longctx as lc
from hf_longctx.mamba.mamba2 import parse
from hf_longctx.measure.needle import run_needle
from hf_longctx.training import choose_layers, distill
from hf_longctx.training.corpus import open_corpus
from hf_longctx.training.dataset import held_out_ids
from hf_longctx.training.layer_choice import LayerChoice, LayerDamage
from hf_longctx.training.student import Student, compare


def main() -> None:
    """Choose, measure, print a table, save the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="hub id, local folder, or demo")
    parser.add_argument("--even", nargs="+", default=["1::2", "1::4"], help="selections to compete with")
    parser.add_argument("--init", default="", help="options of the conversion, such as memory=4096")
    parser.add_argument("--data", default="kjv")
    parser.add_argument("--ranking", type=Path, help="take the ranking of this record instead of measuring it again")
    parser.add_argument("--rows", type=int, default=8, help="rows of text to choose on")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--held-out", type=int, default=8192, help="tokens of held-out text to measure on")
    parser.add_argument("--needle", type=int, nargs="*", default=[1024], help="lengths of the needle test")
    parser.add_argument("--stages", help="heal too, as for hf-longctx distill")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/layer-choice"), help="folder of the healings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="", help="file for the numbers, '' for none")
    args = parser.parse_args()

    model, tokenizer = lc.load_model(args.model)
    ids = held_out_ids(open_corpus(args.data), tokenizer, args.held_out)
    text = [ids[start : start + args.length] for start in range(0, len(ids) - 1, args.length)]
    tokens = model.config.max_position_embeddings
    stock = lc.describe(model).cache_bytes(tokens)
    evens = {even: ",".join(filter(None, [even, args.init])) for even in args.even}
    shares = {}
    for even, plan in evens.items():
        with lc.patched(model, mamba=plan) as hybrid:
            shares[even] = lc.describe(hybrid).cache_bytes(tokens) / stock
    began = time.perf_counter()
    if args.ranking:
        found = json.loads(args.ranking.read_text())["results"][0]["choice"]
        choice = ranked_before({"stock": stock, "attention": model.config.num_hidden_layers} | found)
    else:
        choice = choose_layers(
            model, tokenizer, budget_kv=min(shares.values()), mamba=",".join(filter(None, ["*", args.init])),
            data=args.data, rows=args.rows, length=args.length, seed=args.seed,
        )  # fmt: skip
    seconds, results = time.perf_counter() - began, []
    print(f"{choice}\nranked in {seconds:.0f} s", flush=True)
    for even, kept in shares.items():
        chosen = choice.within(kept)
        plans = {"even": evens[even], "chosen": str(chosen.mamba)}
        result: dict[str, Any] = {"even": even, "kept": kept, "choice": chosen.to_dict(), "plans": {}}
        for name, plan in plans.items():
            with lc.patched(model, mamba=plan) as hybrid:
                found: dict[str, Any] = {"mamba": plan} | compare(Student(hybrid, "match"), text)
            result["plans"][name] = found
        if args.needle:
            hits = needles(model, tokenizer, plans, args)
            result["needle_stock"] = hits.pop("stock")
            for name, rows in hits.items():
                result["plans"][name]["needle"] = rows
        if args.stages:
            for name, plan in plans.items():
                result["plans"][name]["healed"] = healed(plan, f"{even}-{name}".replace(":", "_"), args)
        show(result)
        results.append(result)
    if args.out:
        record = {
            "what": "layers chosen by measured damage against even selections that keep as much of the cache",
            "command": shlex.join(["python", "evals/bench/layer_choice.py", *sys.argv[1:]]),
            "tokens": tokens,
            "machine": machine(),
            "ranked_seconds": round(seconds, 1),
            "results": results,
        }
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out).write_text(json.dumps(record, indent=2) + "\n")
        print(f"saved {args.out}")


def ranked_before(found: dict[str, Any]) -> LayerChoice:
    """The choice of an earlier record, its ranking included."""
    ranking = tuple(LayerDamage(**{k: one[k] for k in ("index", "kl", "needle", "saved")}) for one in found["ranking"])
    own = {"mamba": parse(found["mamba"]), "chosen": tuple(found["chosen"]), "ranking": ranking}
    return LayerChoice(**found | own)


def needles(model: Any, tokenizer: Any, plans: dict[str, str], args: argparse.Namespace) -> dict[str, Any]:
    """Hits of stock and both plans by length, answers generated."""
    summary = run_needle(
        model, tokenizer, variants=[f"{name}: mamba={plan}" for name, plan in plans.items()], lengths=args.needle,
        haystack="prose", seed=args.seed, trials=2, damage=False, progress=False,
    )  # fmt: skip
    keys = ("length", "hits", "n", "low", "high")
    return {name: [{k: row[k] for k in keys} for row in one["lengths"]] for name, one in summary["variants"].items()}


def healed(plan: str, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """What distillation makes of a plan: its quality on held-out text and its needles."""
    record = distill(
        args.model, mamba=plan, data=args.data, out=args.work / name, stages=args.stages, length=args.length,
        batch=args.batch, held_out=args.held_out, needle=tuple(args.needle), seed=args.seed, checkpointing=False,
    )  # fmt: skip
    return record["quality"]["healed"] | {"needle": record.get("needle", {}).get("healed")}


def show(result: dict[str, Any]) -> None:
    """A table of both plans."""
    stock = result["plans"]["even"]["stock_perplexity"]
    print(
        f"\n{result['kept']:.0%} of the cache kept; stock perplexity {stock:.2f}; needle {result.get('needle_stock')}"
    )
    for name, one in result["plans"].items():
        for what, found in (("converted", one), ("healed", one.get("healed"))):
            if found is not None:
                print(
                    f"{name:<7} {what:<10} perplexity {found['perplexity']:>9.2f}  KL {found['kl']:.3f}  "
                    f"same {found['same']:.0%}  needle {found.get('needle')}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
