"""Configurations of public models, shipped so that their costs can be worked out with no hub and no weights."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any


@lru_cache
def public_models() -> dict[str, dict[str, Any]]:
    """By short name: `source` (hub id), `status` (read or from memory), `parameters` and `config` (plain data).

    Some have `also`, the hub ids of models with the same configuration.

    >>> public_models()["llama-3.1-8b"]["config"]["num_hidden_layers"]
    32
    """
    data = json.loads(Path(__file__).with_name("public_models.json").read_text(encoding="utf-8"))
    return data["models"]


def known_config(name: str) -> Any | None:
    """The configuration of a model by any name that a run may have given it, if it is on this computer.

    Args:
        name: a local folder, a public model's short name or hub id, the bundled model, or a hub id in the cache.

    Returns:
        Its configuration, with what it was saved patched with; None where it is not here. No network is asked, and
        no code of the model's own is run.

    >>> known_config("meta-llama/Llama-3.1-8B").num_hidden_layers, known_config("no-such-model")
    (32, None)
    """
    from transformers import AutoConfig

    from hf_longctx.hf.loading import HUB_ID, hub_id

    wanted = hub_id(name) or name
    same = [
        short
        for short, entry in public_models().items()
        if wanted.lower() in (short, *(one.lower() for one in (entry["source"], *entry.get("also", ()))))
    ]
    try:
        if Path(wanted).exists() or not same:
            if not Path(wanted).exists() and not HUB_ID.fullmatch(wanted):
                return None
            return AutoConfig.from_pretrained(wanted, local_files_only=True, trust_remote_code=False)
        return config_of(same[0])
    except (OSError, ValueError):
        return None


def config_of(name: str) -> Any:
    """The configuration of a public model by its short name, else of a local folder, `demo` or a hub id.

    Args:
        name: a local folder goes before a short name.

    Raises:
        ValueError: no such model.
    """
    from transformers import AutoConfig

    from hf_longctx.hf.loading import load_config

    if name.lower() in public_models() and not Path(name).exists():
        settings = dict(public_models()[name.lower()]["config"])
        return AutoConfig.for_model(settings.pop("model_type"), **settings)
    try:
        return load_config(name)
    except ValueError as error:
        raise ValueError(f"{error}; known without a download are {', '.join(public_models())}") from error
