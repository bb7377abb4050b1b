"""LoRA adapters that carry the RoPE that they were trained under, and refuse a model without it.

PEFT stores which layers an adapter changes, but not which frequencies the model had. On an unscaled base such an
adapter loads without a word and answers nonsense. So its `adapter_config.json` gets one more key, `longctx`.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from hf_longctx.hf.rotary import frequencies, original_geometry, rotary_modules
from hf_longctx.rope import parse

CONFIG, KEY, VERSION = "adapter_config.json", "longctx", 1
_FIELDS = {"rope": str, "window": int, "trained": int, "dim": int, "base": float}


def save_adapter(adapted: Any, folder: str | Path, *, window: int | None = None) -> None:
    """Save an adapter with the RoPE of the patched model below it.

    Args:
        adapted: a PEFT model around a patched one.
        folder: where to.
        window: tokens that the model is for; None takes them from the config.

    Raises:
        ValueError: the model below has no RoPE plan.
    """
    config = adapted.get_base_model().config
    stored = getattr(config, "longctx", None)
    if not stored or not stored.get("rope"):
        raise ValueError(
            "the model below the adapter has no RoPE plan to carry: patch it with rope=... before adding the adapter, "
            "or save it with adapter.save_pretrained"
        )
    numbers = original_geometry(config)
    adapted.save_pretrained(str(folder))
    file = Path(folder) / CONFIG
    document = json.loads(file.read_text(encoding="utf-8"))
    document[KEY] = {
        "version": VERSION,
        "rope": stored["rope"],
        "window": window or config.max_position_embeddings,
        "trained": numbers.trained,
        "dim": numbers.dim,
        "base": numbers.base,
    }
    aside = file.with_suffix(".part")
    aside.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    os.replace(aside, file)


def carried_rope(folder: str | Path) -> dict[str, Any] | None:
    """What an adapter says of RoPE: `rope`, `window`, and the `trained`, `dim` and `base` that it counts from.

    Returns:
        None where there is no adapter, or one that carries none.

    Raises:
        ValueError: one that this version cannot read.
    """
    file = Path(folder) / CONFIG
    if not file.is_file():
        return None
    carried = json.loads(file.read_text(encoding="utf-8")).get(KEY)
    if carried is None:
        return None
    good = isinstance(carried, dict) and carried.get("version") == VERSION
    if not good or not all(isinstance(carried.get(name), kind) for name, kind in _FIELDS.items()):
        raise ValueError(
            f"{file} holds a RoPE plan that this hf_longctx cannot read ({carried!r}): install the version that saved "
            "it"
        )
    return carried


def load_adapter(model: Any, folder: str | Path, *, trainable: bool = False) -> Any:
    """Put a saved adapter on a model whose RoPE is the one that it was trained under.

    Args:
        model: a transformers model, patched as the adapter says or trained so.
        folder: of the adapter.
        trainable: whether to go on training it.

    Returns:
        The PEFT model.

    Raises:
        ModuleNotFoundError: without PEFT.
        ValueError: no adapter there, one that carries no RoPE, or a model with other frequencies.
    """
    try:
        from peft import PeftModel
    except ModuleNotFoundError:
        raise ModuleNotFoundError('an adapter needs the package peft: pip install "hf_longctx[train]"') from None
    carried = carried_rope(folder)
    if carried is None:
        raise ValueError(f"{folder} holds no adapter that carries its RoPE: use peft.PeftModel.from_pretrained")
    _check_frequencies(model, carried, folder)
    with warnings.catch_warnings():
        # PEFT says that it does not know the key, which has just been obeyed.
        warnings.filterwarnings("ignore", message=f".*[Uu]nexpected keyword arguments.*{KEY}", category=UserWarning)
        return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)


def merged(folder: str | Path, **kwargs: Any) -> Any:
    """The base model that an adapter names, patched with the RoPE that it carries, the adapter merged into it.

    Args:
        folder: of an adapter that carries its RoPE.
        **kwargs: passed to `AutoModelForCausalLM.from_pretrained` for the base.
    """
    from hf_longctx.hf.patching import patch
    from hf_longctx.hf.saving import from_pretrained

    document = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
    model = from_pretrained(document["base_model_name_or_path"], **kwargs)
    patch(model, rope=document[KEY]["rope"])
    model.config.max_position_embeddings = document[KEY]["window"]
    return load_adapter(model, folder).merge_and_unload()


def _check_frequencies(model: Any, carried: dict[str, Any], folder: str | Path) -> None:
    scaling = parse(carried["rope"])
    expected = scaling.inv_freq(carried["dim"], carried["base"], carried["trained"])
    found = [frequencies(module).double().cpu() for module in rotary_modules(model)]
    if found and all(x.shape == expected.shape and torch.allclose(x, expected, rtol=1e-4, atol=0) for x in found):
        return
    raise ValueError(
        f"adapter {folder} was trained under rope {carried['rope']} over {carried['trained']} trained positions, and "
        f"this {type(model).__name__} has other frequencies: patch it first with hf_longctx.patch(model, "
        f"rope={carried['rope']!r}), or load both with hf_longctx.from_pretrained({str(folder)!r})"
    )
