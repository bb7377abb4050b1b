"""Loading a checkpoint of a patched model: its plan is in config.json, and is applied again."""

from __future__ import annotations

from typing import Any

from hf_longctx.hf.attention import NAME, stored_plan
from hf_longctx.hf.patching import patch


def from_pretrained(path: str, **kwargs: Any) -> Any:
    """Load a causal language model and apply the plan that its config carries, if any. It never scales twice.

    `model.save_pretrained(path)` writes the plan; nothing else is needed.

    Args:
        path: local folder or hub id.
        **kwargs: passed to `AutoModelForCausalLM.from_pretrained`.

    Returns:
        The model, patched as it was saved; `unpatch` works on it.

    Raises:
        ValueError: the plan is of another version, or the config was changed since it was saved.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = kwargs.pop("config", None)
    if config is None:
        shared = {k: kwargs[k] for k in ("revision", "token", "cache_dir", "local_files_only") if k in kwargs}
        config = AutoConfig.from_pretrained(path, **shared)
    if not getattr(config, "longctx", None):
        return AutoModelForCausalLM.from_pretrained(path, config=config, **kwargs)
    stored = stored_plan(config)
    written = {name: getattr(config, name) for name in stored["original"]}
    for name, value in stored["original"].items():
        setattr(config, name, value)
    delattr(config, "longctx")
    if kwargs.get("attn_implementation") == NAME:  # `patch` sets it; unpatching must lead back to an ordinary one
        del kwargs["attn_implementation"]
    model = AutoModelForCausalLM.from_pretrained(path, config=config, **kwargs)
    patch(
        model,
        attention=stored["attention"],
        rope=stored["rope"],
        backend=stored["backend"],
        own_windows=stored["own_windows"],
    )
    for name, value in written.items():
        if getattr(model.config, name) != value:
            raise ValueError(
                f"config.{name} of {path} is {value}, but its plan (rope {stored['rope']}) gives "
                f"{getattr(model.config, name)}: it was edited after saving; remove `longctx` from config.json to use "
                "it as is"
            )
    return model
