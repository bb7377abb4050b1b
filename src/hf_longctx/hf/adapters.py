"""LoRA adapters that carry the RoPE that they were trained under, and refuse a model without it.

PEFT stores which layers an adapter changes, but not which frequencies the model had. On an unscaled base such an
adapter loads without a word and answers nonsense. So its `adapter_config.json` gets one more key, `longctx`.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from hf_longctx.hf.loading import DEMO, HUB_ID, has_demo, hub_id, is_demo_folder, resolve
from hf_longctx.hf.rotary import frequencies, original_geometry, rotary_modules
from hf_longctx.rope import parse

logger = logging.getLogger(__name__)

CONFIG, KEY, VERSION = "adapter_config.json", "longctx", 1
_FIELDS = {"rope": str, "window": int, "trained": int, "dim": int, "base": float}


def save_adapter(adapted: Any, folder: str | Path, *, window: int | None = None, base: str | None = None) -> None:
    """Save an adapter with the RoPE of the patched model below it.

    Args:
        adapted: a PEFT model around a patched one.
        folder: where to.
        window: tokens that the model is for; None takes them from the config.
        base: hub id of the base model, where it was loaded from a folder of this machine; None keeps what PEFT found,
            or the hub id of the bundled model.

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
    card = Path(folder) / "README.md"
    had_card = card.exists()
    adapted.save_pretrained(str(folder))
    if not had_card:
        card.unlink(missing_ok=True)  # PEFT's is blank, and names the folder that the base was loaded from
    file = Path(folder) / CONFIG
    document = json.loads(file.read_text(encoding="utf-8"))
    found = document.get("base_model_name_or_path")
    document["base_model_name_or_path"] = base or hub_id(found) or found
    document[KEY] = {
        "version": VERSION,
        "rope": stored["rope"],
        "window": window or config.max_position_embeddings,
        "trained": numbers.trained,
        "dim": numbers.dim,
        "base": numbers.base,
    }
    if found and is_demo_folder(found):
        document[KEY]["loaded_as"] = DEMO  # its weights are not quite those of its hub id
    aside = file.with_suffix(".part")
    aside.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    os.replace(aside, file)


def carried_rope(folder: str | Path, **hub: Any) -> dict[str, Any] | None:
    """What an adapter says of RoPE: `rope`, `window`, and the `trained`, `dim` and `base` that it counts from.

    Args:
        folder: of the adapter, or its hub id.
        **hub: `revision`, `token`, `cache_dir` and `local_files_only`, as huggingface_hub takes them.

    Returns:
        None where there is no adapter, one that carries none, or nothing that can be reached.

    Raises:
        ValueError: one that this version cannot read.
    """
    document = _document(folder, hub)
    return None if isinstance(document, str) else _carried(document, folder)


def load_adapter(model: Any, folder: str | Path, *, trainable: bool = False, **hub: Any) -> Any:
    """Put a saved adapter on a model whose RoPE is the one that it was trained under.

    Args:
        model: a transformers model, patched as the adapter says or trained so.
        folder: of the adapter, or its hub id.
        trainable: whether to go on training it.
        **hub: `revision`, `token`, `cache_dir` and `local_files_only`, as huggingface_hub takes them.

    Returns:
        The PEFT model.

    Raises:
        ModuleNotFoundError: without PEFT.
        ValueError: no adapter there, one that cannot be reached or carries no RoPE, or a model with other frequencies.
    """
    try:
        from peft import PeftModel
    except ModuleNotFoundError:
        raise ModuleNotFoundError('an adapter needs the package peft: pip install "hf_longctx[train]"') from None
    document = _document(folder, hub)
    if isinstance(document, str):
        raise ValueError(f"adapter {str(folder)!r} cannot be loaded: {document}")
    carried = _carried(document, folder)
    if carried is None:
        raise ValueError(
            f"adapter {str(folder)!r} carries no RoPE, so hf_longctx did not save it: peft.PeftModel.from_pretrained "
            "loads it, on a model that has the RoPE that it was trained under"
        )
    _check_frequencies(model, carried, folder)
    with warnings.catch_warnings():
        # PEFT says that it does not know the key, which has just been obeyed.
        warnings.filterwarnings("ignore", message=f".*[Uu]nexpected keyword arguments.*{KEY}", category=UserWarning)
        return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable, **hub)


def alone(folder: str | Path, hub: dict[str, Any]) -> dict[str, Any] | None:
    """The `adapter_config.json` of an adapter without a model: one in a model's own folder is transformers' matter.

    Args:
        folder: of an adapter, or its hub id.
        hub: how huggingface_hub reaches it.
    """
    document = "" if (Path(folder) / "config.json").is_file() else _document(folder, hub)
    return None if isinstance(document, str) else document


def with_base(folder: str | Path, document: dict[str, Any], hub: dict[str, Any], **kwargs: Any) -> Any:
    """The base model that an adapter names, with the adapter.

    One that carries its RoPE is merged into a base that is patched so; any other stays an adapter on its base.

    Args:
        folder: of an adapter, or its hub id.
        document: what `alone` says of it.
        hub: how huggingface_hub reaches it.
        **kwargs: passed to `AutoModelForCausalLM.from_pretrained` for the base.
    """
    from hf_longctx.hf.patching import patch
    from hf_longctx.hf.saving import from_pretrained

    base, carried = document["base_model_name_or_path"], _carried(document, folder)
    if carried and carried.get("loaded_as") == DEMO and has_demo():
        logger.info(
            "adapter %s: its base is loaded as %s, the copy that it was trained on, not as %s", folder, DEMO, base
        )
        base = resolve(DEMO)
    loaded = from_pretrained(base, **kwargs)
    model, *info = loaded if kwargs.get("output_loading_info") else (loaded,)
    if carried:
        patch(model, rope=carried["rope"])
        model.config.max_position_embeddings = carried["window"]
        model = load_adapter(model, folder, **hub).merge_and_unload()
    else:
        model.load_adapter(str(folder), adapter_kwargs=dict(hub))
    return (model, *info) if info else model


def _document(folder: str | Path, hub: dict[str, Any]) -> dict[str, Any] | str:
    """An adapter's `adapter_config.json`, or in words why there is none."""
    place = Path(folder)
    if place.exists():
        file = place / CONFIG
        if not file.is_file():
            return f"it has no {CONFIG}, so it is no adapter"
        return dict(json.loads(file.read_text(encoding="utf-8")))
    if not HUB_ID.fullmatch(str(folder)):
        return "it is no folder here, and no hub id such as OWNER/NAME"
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    try:
        file = Path(hf_hub_download(str(folder), CONFIG, **hub))
    except LocalEntryNotFoundError as error:  # before the next, of which it is one
        return f"the hub cannot be reached, and its {CONFIG} is not in the cache ({_first_line(error)})"
    except EntryNotFoundError:
        return f"the repository has no {CONFIG}, so it is no adapter"
    except (OSError, HFValidationError) as error:
        return f"the hub gives no such repository or revision, or not to you ({_first_line(error)})"
    return dict(json.loads(file.read_text(encoding="utf-8")))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _carried(document: dict[str, Any], folder: str | Path) -> dict[str, Any] | None:
    carried = document.get(KEY)
    if carried is None:
        return None
    good = isinstance(carried, dict) and carried.get("version") == VERSION
    if not good or not all(isinstance(carried.get(name), kind) for name, kind in _FIELDS.items()):
        raise ValueError(
            f"{CONFIG} of {folder} holds a RoPE plan that this hf_longctx cannot read ({carried!r}): install the "
            "version that saved it"
        )
    return carried


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
