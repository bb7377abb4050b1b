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
