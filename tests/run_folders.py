"""Made-up needle runs with a known shape, as rows, as a summary and as a folder."""

import json

from hf_longctx.measure import stats

LENGTHS, DEPTHS = (1024, 2048, 4096, 8192, 12288), (0.0, 0.25, 0.5, 0.75, 1.0)
VARIANTS = {
    "stock": ({}, 8192, lambda length, depth: length <= 4096),
    "yarn2": ({"rope": "yarn:2"}, 16384, lambda length, depth: length <= 8192 or depth >= 0.5),
    "window": ({"attention": "window:1024+global:4"}, 8192, lambda length, depth: (1 - depth) * length < 1024),
}
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> {{ 7 * 7 }} ☃ 針"


def make_row(variant, length, depth, outcome, *, trial=0, kind="needle", text="1234567"):
    return {
        "variant": variant,
        "trial": trial,
        "length": length,
        "depth": depth,
        "kind": kind,
        "outcome": outcome,
        "reason": f"out of memory {text}" if outcome == "invalid" else None,
        "expected": "7654321",
        "answer": None if outcome == "invalid" else text,
        "question": f"What is the access code for {text}?",
        "context": {"before": f"before {text}", "needle": f"The access code is {text}.", "after": f"after {text}"},
    }


def make_rows(variants=VARIANTS, lengths=LENGTHS, **kwargs):
    for name in variants:
        hit = VARIANTS[name][2]
        for length in lengths:
            for depth in DEPTHS:
                yield make_row(name, length, depth, "hit" if hit(length, depth) else "miss", **kwargs)
            yield make_row(name, length, None, "miss", kind="control", **kwargs)


def make_summary(rows, variants=VARIANTS, **extra):
    entries = stats.summarise(rows, claimed={name: VARIANTS[name][1] for name in variants})
    for name, entry in entries.items():
        layer = {"kind": "full_attention", "pattern": "full", "given": None, "reach": None, "kv_bytes": 768}
        entry["definition"] = VARIANTS[name][0]
        entry["plan"] = {"rope": "none", "layers": [layer | {"index": i} for i in range(4)]}
        entry["dispatched"] = {"implementation": "sdpa"}
        entry["prefill"] = {"spent": 12288, "saved": 123456}
        entry["seconds"] = 141.2
    return {
        "schema": 1,
        "model": "a-model",
        "command": "hf-longctx needle demo",
        "seed": 0,
        "settings": {"needles": "shared", "lengths": list(LENGTHS), "depths": list(DEPTHS)},
        "versions": {"python": "3.11", "hf_longctx": "0.1.0"},
        "hardware": {"cpu": "a cpu", "memory_bytes": 8 << 30, "cuda": None},
        "haystack": {"name": "kjv", "label": "natural text", "unique_share": 0.962},
        "variants": entries,
        **extra,
    }


def save(folder, rows, summary):
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "rows.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def make_task_rows(variants=("stock", "window"), lengths=(1024, 2048), trials=4, *, text="1234567", broken=()):
    """A run of two tasks in which every variant answers the first and stock alone the second."""
    for name in variants:
        for length in lengths:
            for trial in range(trials):
                for task in ("niah_single_1", "vt"):
                    score = 1.0 if task == "niah_single_1" else 0.5 if name == "stock" else 0.0
                    row = make_row(name, length, 0.3, "hit" if score == 1.0 else "miss", trial=trial, text=text)
                    yield {**row, "task": task, "kind": task, "score": score, "expected": ["7654321", text]}
                control = make_row(name, length, 0.3, "hit" if name in broken else "miss", trial=trial, text=text)
                yield {**control, "task": "vt", "kind": "control vt", "score": float(name in broken)}


def make_task_summary(names=("stock", "window"), **extra):
    definitions = {name: {"definition": VARIANTS[name][0], "claimed": VARIANTS[name][1]} for name in names}
    return {
        **make_summary([], []),
        "settings": {"kind": "tasks", "model": "a-model", "seed": 0, "haystack": "prose"},
        "tasks": ["niah_single_1", "vt"],
        "command": "hf-longctx effective demo",
        "variants": definitions,
        **extra,
    }


def make_cost_rows(variants=("standard", "stock", "window"), lengths=(1024, 2048, 4096), *, text="killed"):
    """Costs that grow with the length; standard runs out of memory at 4096 and is not tried beyond."""

    def spread(value):
        return {"median": value, "low": 0.9 * value, "high": 1.1 * value, "values": [value]}

    for length in lengths:
        for index, name in enumerate(variants):
            row = {"variant": name, "trial": 0, "length": length, "depth": None, "kind": "cost"}
            if name == "standard" and length >= 4096:
                yield row | {"outcome": "oom" if length == 4096 else "skipped", "reason": text, "seconds": 1.0}
                continue
            yield row | {
                "outcome": "ok",
                "reason": None,
                "ttft_seconds": spread(length / 1000 / (index + 1)),
                "prefill_tokens_per_second": spread(1000.0 * (index + 1)),
                "decode_tokens_per_second": spread(20.0 + index),
                "baseline_bytes": 600 << 20,
                "peak_bytes": (700 << 20) + length * 100_000,
                "working_bytes": length * 100_000,
                "modelled_working_bytes": length * 98_000,
                "cache_bytes": length * 46_080,
                "described_cache_bytes": length * 46_080,
                "seconds": 2.0,
            }


def save_cost(folder, rows, variants=("standard", "stock", "window"), **extra):
    folder.mkdir(exist_ok=True, parents=True)
    run = {
        "schema": 1,
        "settings": {"model": "a-model", "repeats": 3, "seed": 0},
        "command": "hf-longctx cost a-model",
        "versions": {"python": "3.11"},
        "hardware": {"cpu": "a cpu"},
        "started": "2026-01-01T00:00:00+00:00",
        "variants": {name: {"definition": VARIANTS.get(name, ({},))[0], "claimed": 8192} for name in variants},
        **extra,
    }
    (folder / "cost.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "cost.json").write_text(json.dumps(run), encoding="utf-8")
    return folder


def save_suite(folder, **extra):
    """A suite of a needle run, a run of tasks, a cost run, and one part that has not begun."""
    folder.mkdir()
    rows = list(make_rows(lengths=(1024, 2048)))
    save(folder / "recall", rows, make_summary(rows))
    save(folder / "tasks", make_task_rows(), make_task_summary())
    save_cost(folder / "cost", make_cost_rows())
    kinds = {"recall": "needle", "tasks": "tasks", "cost": "cost", "later": "tasks"}
    parts = [{"name": name, "kind": kind, "model": "a-model", "folder": name} for name, kind in kinds.items()]
    suite = {"schema": 1, "name": "demo suite", "command": "hf-longctx eval demo.yaml", "parts": parts, **extra}
    (folder / "suite.json").write_text(json.dumps(suite), encoding="utf-8")
    return folder
