"""The model card of a healed hybrid: what was converted and trained, and what it is worth beside the original."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hf_longctx.hf.loading import hub_id

from .phases import OBJECTIVES

#: The rows of the table.
ROWS = {"stock": "original", "converted": "converted, not trained", "healed": "healed (this model)"}


def write_card(record: dict[str, Any], picture: str | None = None) -> str:
    """The card as Markdown with its metadata.

    Args:
        record: of a run, as `distill.json` has it.
        picture: name of the file of curves, if there is one.
    """
    settings, trained = record["settings"], record["trained"]
    base = hub_id(settings["model"])
    name = base or Path(settings["model"]).name
    metadata = {
        **({"base_model": base} if base else {}),  # the hub refuses what is no id of its own
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["mamba2", "hybrid", "hf_longctx"],
    }
    head = "\n".join(f"{key}: {json.dumps(value)}" for key, value in metadata.items())
    layers = ", ".join(map(str, trained["layers"]))
    names = ("mamba", "attention", "rope")
    plan = ", ".join(f"{name}={settings[name]}" for name in names if settings.get(name))
    table, rows = quality_rows(record)
    lines = [
        f"---\n{head}\n---\n",
        f"# {name} with Mamba-2 layers\n",
        f"Attention layers {layers} of {name} are Mamba-2 layers (`{plan}`), healed by "
        f"distillation from the model itself. {trained['parameters']:,} of {trained['of']:,} parameters were trained: "
        f"{trained['what']}.\n",
        "## Training\n",
        f"- data: {record['data']}",
        *(f"- {_stage(stage)}" for stage in record["stages"]),
        *([f"- command: `{record['command']}`"] if record.get("command") else []),
        "- versions: " + ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        "",
        *([f"![losses by step]({picture})\n"] if picture else []),
        "## Measured\n",
    ]
    if rows:
        lines += ["| " + " | ".join(cells) + " |" for cells in [table, ["---"] * len(table), *rows]]
        lines.append("\n" + explained(record) + "\n")
    else:
        lines.append("Nothing was measured.\n")
    lines += [
        "## Load\n",
        "Plain transformers does not know the layers:\n",
        '```python\nimport hf_longctx as lc\n\nmodel = lc.from_pretrained("PATH")\n```\n',
    ]
    return "\n".join(lines)


def explained(record: dict[str, Any]) -> str:
    """One sentence for each figure of the table that there is."""
    parts = []
    if record.get("quality"):
        tokens = record["quality"]["converted"]["tokens"]
        parts.append(
            f"Perplexity and KL to the original (nats a token) are over {tokens:,} tokens of held-out text of the "
            "same data; `same` is the share of tokens whose likeliest prediction is the original's."
        )
    patched = [f"{name}={one}" for name in ("attention", "rope") if (one := record["settings"].get(name))]
    if patched:
        parts.append(f"The original, too, is measured under {' and '.join(patched)}.")
    if record.get("needle"):
        parts.append(
            "Needle: facts hidden in generated prose, answers generated and not scored, hits of questions with the "
            "95% Wilson interval."
        )
    return " ".join(parts)


def quality_rows(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of the original, the converted and the healed model.

    >>> stock = {"perplexity": 20.0, "kl": 0.0, "same": 1.0, "tokens": 100}
    >>> quality_rows({"quality": {"stock": stock, "healed": stock | {"perplexity": 21.0, "kl": 0.5, "same": 0.75}}})
    (['', 'perplexity', 'KL', 'same'], [['original', '20', '0', '100%'], ['healed (this model)', '21', '0.5', '75%']])
    """
    quality, needle = record.get("quality") or {}, record.get("needle") or {}
    names = [name for name in ROWS if name in quality or name in needle]
    if not names:
        return [], []
    asked = [row["length"] for row in next(iter(needle.values()), [])]
    head = ["", *(["perplexity", "KL", "same"] if quality else []), *(f"needle at {length:,}" for length in asked)]
    rows = []
    for name in names:
        cells = [ROWS[name]]
        if quality:
            one = quality.get(name)
            cells += (
                ["-"] * 3 if one is None else [f"{one['perplexity']:.4g}", f"{one['kl']:.3g}", f"{one['same']:.0%}"]
            )
        found = {row["length"]: row for row in needle.get(name, ())}
        cells += [_hits(found.get(length)) for length in asked]
        rows.append(cells)
    return head, rows


def _hits(row: dict[str, Any] | None) -> str:
    if row is None or not row["n"]:
        return "-"
    return f"{row['hits']}/{row['n']} ({row['low']:.0%} to {row['high']:.0%})"


def _stage(stage: dict[str, Any]) -> str:
    losses = [row["loss"] for row in stage["log"]]
    course = f", loss {losses[0]:.3g} to {losses[-1]:.3g}" if losses else ""
    return (
        f"`{stage['objective']}` ({OBJECTIVES[stage['objective']]}): {stage['steps']} steps of {stage['batch']} "
        f"sequences of {stage['length']:,} tokens, learning rate {stage['learning_rate']:g}{course}"
    )
