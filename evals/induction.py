"""Does scaling RoPE extend a window, how well before training, and after how few steps?

A small Llama is trained from nothing on 256 tokens, then read at 1024: as it is, under each scaling, and after the
same few steps of training at 1024. One seed is one model, the same for all methods. What it learns is associative
recall (MQAR of Arora et al. 2023, arXiv 2312.04927), which takes an induction head: a row holds facts (a key, then its
value) among filler, and ends by asking every key again. RoPE knows distances only, so recall is counted by how far
back the fact is. Beyond 256 no distance was ever trained.

    python evals/induction.py --seeds 0 1 2 3 4

Seeds that the results file has already are not run again. The head size and theta are such that the slowest pair of
dimensions turns by 0.32 radians in the trained window, about as little as Llama 2's does in its own (0.47).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

import hf_longctx as lc
from hf_longctx.measure.paired import bootstrap_mean

TRAINED, EXTENDED = 256, 1024
METHODS = ("stock", "linear:4", "ntk:4", "yarn:4")
STEPS = (0, 3, 10, 30)
"""Steps of training at the extended length after which each method is measured."""
EDGES = (0, 128, 256, 512, 768, 1024)
"""Bounds of the distances, in tokens: more than one, at most the next."""
GOALS = (0.9, 0.95, 0.99)
"""Shares of all questions at 1024 that count as extended; each has its own count of steps."""
KEYS, VALUES, FILLERS, FACTS = 32, 32, 8, 8
VOCABULARY = KEYS + VALUES + FILLERS


@dataclass(frozen=True)
class Rows:
    """Rows of facts and questions.

    Attributes:
        ids: tokens, (rows, length) int64.
        asked: place of each question's key, (rows, FACTS) int64; the next token is the answer.
        answers: the value to be recalled, (rows, FACTS) int64.
        distances: from the question's key back to the fact's key, in tokens, (rows, FACTS) int64.
    """

    ids: Tensor
    asked: Tensor
    answers: Tensor
    distances: Tensor


def draw(rows: int, length: int, generator: torch.Generator) -> Rows:
    """Facts at random even places, filler between them, and at the end every key again, in another order."""
    each = torch.arange(rows)[:, None]
    ids = torch.randint(KEYS + VALUES, VOCABULARY, (rows, length), generator=generator)
    keys = torch.rand(rows, KEYS, generator=generator).argsort(1)[:, :FACTS]
    values = torch.randint(KEYS, KEYS + VALUES, (rows, FACTS), generator=generator)
    places = 2 * torch.rand(rows, length // 2 - FACTS, generator=generator).argsort(1)[:, :FACTS]
    order = torch.rand(rows, FACTS, generator=generator).argsort(1)
    asked = (length - 2 * FACTS + 2 * torch.arange(FACTS)).expand(rows, -1)
    answers = values.gather(1, order)
    ids[each, places], ids[each, places + 1] = keys, values
    ids[each, asked], ids[each, asked + 1] = keys.gather(1, order), answers
    return Rows(ids, asked, answers, asked - places.gather(1, order))


def answer(model: LlamaForCausalLM, rows: Rows) -> Tensor:
    """Logits of each answer, (rows, FACTS, VOCABULARY)."""
    hidden = model.model(input_ids=rows.ids, use_cache=False).last_hidden_state
    return model.lm_head(hidden[torch.arange(len(rows.ids))[:, None], rows.asked])


@dataclass
class Learner:
    """A model with its optimizer and its source of rows."""

    model: LlamaForCausalLM
    generator: torch.Generator
    rate: float

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.model.parameters(), self.rate, (0.9, 0.98), weight_decay=0.1)

    def step(self, rows: int, length: int, share: float = 1.0) -> float:
        """One step at `share` of the learning rate; gives the share of answers that were right before it."""
        batch = draw(rows, length, self.generator)
        logits = answer(self.model, batch).flatten(0, 1)
        cross_entropy(logits, batch.answers.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = share * self.rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return (logits.argmax(-1) == batch.answers.flatten()).float().mean().item()


def train_from_nothing(seed: int, last: int = 100, limit: int = 2000) -> tuple[LlamaForCausalLM, int]:
    """A model that has learnt recall on 256 tokens, and the steps that it took.

    Rows get longer (32, 64, 128, 256 tokens) each time that nine of ten answers are right. Embeddings much larger than
    the projections let induction appear within some hundred steps.

    Args:
        seed: of weights and rows.
        last: steps at 256 tokens.
        limit: steps that the shorter lengths may take together.

    Raises:
        RuntimeError: recall was not learnt within `limit` steps.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=TRAINED, tie_word_embeddings=True,
        initializer_range=0.1, rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.5)
    learner, steps = Learner(model, torch.Generator().manual_seed(seed), 3e-3), 0
    for length in (32, 64, 128):
        right = 0.0
        while right < 0.9:
            if steps == limit:
                raise RuntimeError(
                    f"seed={seed}: {right:.0%} right on {length} tokens after {steps} steps; try another"
                )
            right = 0.9 * right + 0.1 * learner.step(1024 // length, length, min(1.0, (steps + 1) / 50))
            steps += 1
    for step in range(last):
        learner.step(8, TRAINED, 1 - 0.9 * step / last)
    return model, steps + last


@torch.no_grad()
def measure(model: LlamaForCausalLM, length: int, rows: int, seed: int = 12345) -> dict[str, Any]:
    """Recall at a length: `hits` and `n` by distance (as EDGES), and the mean `loss` of an answer, in nats.

    The rows depend on length, number and seed alone, so that every model is asked the same.
    """
    generator = torch.Generator().manual_seed(seed)
    hits, counts, loss = [0] * (len(EDGES) - 1), [0] * (len(EDGES) - 1), 0.0
    for begin in range(0, rows, 8):
        batch = draw(min(8, rows - begin), length, generator)
        logits = answer(model, batch)
        loss += cross_entropy(logits.flatten(0, 1), batch.answers.flatten(), reduction="sum").item()
        right = logits.argmax(-1) == batch.answers
        for i, (low, high) in enumerate(zip(EDGES, EDGES[1:], strict=False)):
            inside = (batch.distances > low) & (batch.distances <= high)
            hits[i] += int((right & inside).sum())
            counts[i] += int(inside.sum())
    return {"hits": hits, "n": counts, "loss": loss / (rows * FACTS)}


def extend(model: LlamaForCausalLM, method: str, steps: tuple[int, ...], rows: int, seed: int) -> dict[str, Any]:
    """A copy of the model under a method, measured at both lengths after each number of steps of 4 rows at 1024.

    The learning rate, 3e-4, was chosen beforehand on seeds 0 and 7: at 1e-3 YaRN lost recall while it trained.

    Returns:
        ``{steps: {"256": ..., "1024": ...}}`` of `measure`. All methods train on the same rows.
    """
    model = copy.deepcopy(model)
    if method != "stock":
        lc.patch(model, rope=method)
    learner, found, done = Learner(model, torch.Generator().manual_seed(1000 + seed), 3e-4), {}, 0
    for goal in steps:
        for _ in range(done, goal):
            learner.step(4, EXTENDED)
        done = goal
        found[str(goal)] = {str(length): measure(model, length, rows) for length in (TRAINED, EXTENDED)}
    return found


def recall(found: dict[str, Any], buckets: slice = slice(None)) -> float:
    """Share of right answers within some of the distances."""
    return sum(found["hits"][buckets]) / sum(found["n"][buckets])


def steps_needed(run: dict[str, Any], goal: float) -> float:
    """The fewest measured steps after which a method recalls `goal` of all questions at 1024; infinity if none."""
    reached = (int(steps) for steps, found in run.items() if recall(found[str(EXTENDED)]) >= goal)
    return min(reached, default=math.inf)


def verdict(seeds: list[dict[str, Any]]) -> str:
    """Whether the literature's order was found: a line for linear untrained, and one for each goal of YaRN's steps."""
    scaled, total = METHODS[1:], len(seeds)

    def worst(length: int) -> int:
        """Seeds where linear is below both others, untrained."""
        scores = [{m: recall(one["methods"][m]["0"][str(length)]) for m in scaled} for one in seeds]
        return sum(one["linear:4"] < min(one["ntk:4"], one["yarn:4"]) for one in scores)

    lines = [
        f"Linear untrained recalls less than both others in {worst(TRAINED)} of {total} seeds at {TRAINED} tokens, "
        f"and in {worst(EXTENDED)} of {total} at {EXTENDED}."
    ]
    for goal in GOALS:
        needed = [{m: steps_needed(one["methods"][m], goal) for m in scaled} for one in seeds]
        others = [min(one["linear:4"], one["ntk:4"]) for one in needed]
        fewer = sum(one["yarn:4"] < other for one, other in zip(needed, others, strict=True))
        equal = sum(one["yarn:4"] == other < math.inf for one, other in zip(needed, others, strict=True))
        steps = "; ".join(f"{m} {', '.join(_count(one[m]) for one in needed)}" for m in scaled)
        lines.append(
            f"YaRN's steps to {goal:.0%}: fewer than both others in {fewer} of {total} seeds, as few as the better in "
            f"{equal} (by seed: {steps})."
        )
    return "\n".join(lines)


def _count(steps: float) -> str:
    return "never" if steps == math.inf else str(int(steps))


def table(seeds: list[dict[str, Any]]) -> str:
    """Recall of each method and number of steps: mean over seeds with its interval, as Markdown."""
    parts = [(TRAINED, "all at 256", slice(None)), (EXTENDED, "all at 1024", slice(None))]
    for i, (low, high) in enumerate(zip(EDGES, EDGES[1:], strict=False)):
        parts.append((EXTENDED, f"{low + 1} to {high}", slice(i, i + 1)))
    lines = ["| method | steps | " + " | ".join(title for _, title, _ in parts) + " | loss at 1024 |"]
    lines.append("|---|---|" + "---|" * (len(parts) + 1))
    for method in METHODS:
        for steps in seeds[0]["methods"][method]:
            runs = [one["methods"][method][steps] for one in seeds]
            cells = []
            for length, _, buckets in parts:
                mean, low, high = bootstrap_mean([100 * recall(run[str(length)], buckets) for run in runs])
                cells.append(f"{mean:.1f} ({low:.1f}-{high:.1f})")
            mean, low, high = bootstrap_mean([run[str(EXTENDED)]["loss"] for run in runs])
            lines.append(f"| {method} | {steps} | " + " | ".join(cells) + f" | {mean:.3f} ({low:.3f}-{high:.3f}) |")
    return "\n".join(lines)


def plot(seeds: list[dict[str, Any]], path: Path) -> None:
    """Recall by distance, untrained and after steps: a panel for each number of steps, a thin line for each seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    numbers = list(seeds[0]["methods"]["stock"])
    figure, axes = plt.subplots(1, len(numbers), figsize=(3.4 * len(numbers), 3.4), sharey=True, layout="constrained")
    middles = [(low + high) / 2 for low, high in zip(EDGES, EDGES[1:], strict=False)]
    for axis, steps in zip(axes, numbers, strict=True):
        for method, colour in zip(METHODS, ("#000000", "#D55E00", "#009E73", "#0072B2"), strict=True):
            curves = []
            for one in seeds:
                found = one["methods"][method][steps][str(EXTENDED)]
                curves.append([h / n for h, n in zip(found["hits"], found["n"], strict=True)])
                axis.plot(middles, curves[-1], color=colour, alpha=0.25, linewidth=0.8)
            means = [statistics.fmean(points) for points in zip(*curves, strict=True)]
            axis.plot(middles, means, color=colour, marker="o", label=method)
        axis.axvline(TRAINED, color="#888888", linestyle=":")
        axis.set(title=f"{steps} steps at {EXTENDED}", xlabel="distance of the fact, tokens", ylim=(-0.03, 1.03))
    axes[0].set_ylabel("recall")
    axes[0].legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train, extend, measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--rows", type=int, default=64, help=f"rows of {FACTS} questions to measure on")
    parser.add_argument("--out", type=Path, default=Path("evals/results/induction.json"))
    parser.add_argument("--plot", action="store_true", help="draw a picture beside the results")
    args = parser.parse_args()

    # Single thread: the model is too small for more.
    torch.set_num_threads(1)
    record = json.loads(args.out.read_text()) if args.out.exists() else {"rows": args.rows, "seeds": []}
    if record["rows"] != args.rows:
        parser.error(
            f"--rows {args.rows}: {args.out} was measured with {record['rows']}; give these, or another --out"
        )
    for seed in args.seeds:
        if any(one["seed"] == seed for one in record["seeds"]):
            continue
        began = time.process_time()
        model, steps = train_from_nothing(seed)
        print(f"seed {seed}: learnt in {steps} steps, {time.process_time() - began:.0f} s", flush=True)
        methods = {}
        for method in METHODS:
            methods[method] = extend(model, method, STEPS, args.rows, seed)
            shown = {steps: f"{recall(found[str(EXTENDED)]):.3f}" for steps, found in methods[method].items()}
            print(f"  {method:<9} recall at {EXTENDED} by steps: {shown}", flush=True)
        seconds = round(time.process_time() - began, 1)
        record["seeds"].append({"seed": seed, "steps": steps, "seconds": seconds, "methods": methods})
        seeds = [str(one["seed"]) for one in record["seeds"]]
        record |= {
            "what": "recall of a small Llama trained on 256 tokens and read at 1024, by RoPE scaling and steps",
            "command": " ".join(["python evals/induction.py --rows", str(args.rows), "--seeds", *seeds]),
            "versions": {"torch": torch.__version__, "hf_longctx": lc.__version__},
            "edges": EDGES,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record["seeds"]), verdict(record["seeds"]), sep="\n\n")
    if args.plot:
        plot(record["seeds"], args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
