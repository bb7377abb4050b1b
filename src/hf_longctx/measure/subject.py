"""The model under test: how to patch it, what it then is, and what it allows to be shared or read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from hf_longctx.hf.lengths import held_length, length_dependent

from .environment import free_memory
from .probe import CHUNK, Reader
from .variants import AS_LOADED, Variant


def patched_as(model: Any, variant: Variant) -> contextlib.AbstractContextManager[Any]:
    """The model as a variant, for as long as the context lasts.

    Args:
        model: a Hugging Face causal LM, not patched.
        variant: what to make of it; `stock` leaves it alone.

    Returns:
        A context manager.

    Raises:
        ValueError: for a definition that cannot work on this model.
    """
    definition = variant.definition()
    if not definition:
        return contextlib.nullcontext(model)
    from hf_longctx import patched

    return patched(model, **definition)


@contextlib.contextmanager
def as_loaded(model: Any) -> Iterator[Variant | None]:
    """The untouched model behind a patched one, for as long as the context lasts; it is patched again afterwards.

    Args:
        model: a Hugging Face causal LM, patched or not.

    Yields:
        What it was patched with, as the variant `as-loaded`; None if it was not patched. A model that was saved with
        Mamba layers stays as it is, since there is no untouched one behind it, and so does one whose Mamba layers are
        no longer what their conversion made, whoever trained them, since patching it again would not bring back what
        they learned; its variant then defines nothing.

    Raises:
        ValueError: for a plan that cannot be undone, or that this version cannot read.
    """
    from hf_longctx import is_patched, patch, unpatch
    from hf_longctx.hf.attention import arguments, stored_plan
    from hf_longctx.hf.mixers import as_converted, mixers
    from hf_longctx.mamba.mamba2 import parse

    if not is_patched(model):
        yield None
        return
    plan = arguments(stored_plan(model.config))
    if mixers(model) and (model.config.longctx["healed"] or not as_converted(model, parse(plan["mamba"]))):
        yield Variant(AS_LOADED)
        return
    unpatch(model)
    try:
        yield Variant(AS_LOADED, **plan)
    finally:
        patch(model, **plan)


def look_at(model: Any, variant: Variant, *, longest: int | None = None) -> dict[str, Any]:
    """What a variant is, by patching once: a definition that cannot work fails here, before anything has run.

    Args:
        model: a Hugging Face causal LM, not patched. Unchanged afterwards.
        variant: what to make of it.
        longest: the longest prompt that it will read, in tokens; None where memory is no matter.

    Returns:
        `definition`, `claimed` (tokens, from the variant's own config), `plan` (what `describe` gives), `dispatched`
        (transformers' attention implementation, and the backend of each pattern) and `per_length` (whether no length
        can be read on to the next).

    Raises:
        ValueError: for a definition that cannot work on this model, or a longest prompt whose cache alone does not
            fit in free memory.
    """
    from hf_longctx import describe

    with patched_as(model, variant):
        description = describe(model)
        plan = description.to_dict()
        config = model.config.get_text_config(decoder=True)
        facts = {
            "definition": variant.definition(),
            "claimed": getattr(config, "max_position_embeddings", None),
            "plan": plan,
            "dispatched": {"implementation": config._attn_implementation, **_backends(plan)},
            "per_length": length_dependent(model) or switches_rope(model),
        }
        need = 0 if longest is None else description.cache_bytes(longest)
    free = None if longest is None else free_memory(str(model.device))
    if free is not None and need > free:
        raise ValueError(
            f"lengths: {longest} tokens need {need / 2**30:.1f} GiB of keys and values under {variant.name!r}, and "
            f"{free / 2**30:.1f} GiB are free: choose shorter lengths, a pattern that drops keys, a smaller dtype "
            "or a larger machine"
        )
    return facts


def switches_rope(model: Any) -> bool:
    """Does transformers itself change the frequencies of this model with the length of a forward call?

    Then a cache that was filled in pieces holds keys rotated in different ways, and a prompt has to be read at once.

    Args:
        model: a Hugging Face causal LM, patched or not.

    Returns:
        True for native dynamic NTK and LongRoPE.
    """
    config = model.config.get_text_config(decoder=True)
    given = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in given.values() if isinstance(value, dict)]
    kinds = {parameters.get("rope_type") for parameters in (nested or [given])}
    return not length_dependent(model) and bool(kinds & {"dynamic", "longrope"})


@contextlib.contextmanager
def reading(model: Any, length: int) -> Iterator[Reader]:
    """A reader for one prompt that shares nothing, whatever the model's RoPE does with its length.

    Args:
        model: a Hugging Face causal LM, patched or not.
        length: tokens of the prompt and its answer.

    Yields:
        A reader that has read nothing.
    """
    held = held_length(model, length) if length_dependent(model) else contextlib.nullcontext()
    with held:
        yield Reader(model, chunk=length if switches_rope(model) else CHUNK)


def identity(model: Any, tokenizer: Any, name: str | None) -> dict[str, Any]:
    """Which model answers: what a run's folder must agree on.

    Args:
        model: a Hugging Face causal LM.
        tokenizer: its tokenizer.
        name: what reports call it; None takes the name it was loaded by.

    Returns:
        `model`, `parameters`, `dtype` and `vocabulary`, as JSON types.
    """
    return {
        "model": name or model.config._name_or_path or type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "vocabulary": len(tokenizer),
    }


def learned_positions(model: Any) -> int | None:
    """Positions of a model that learned an embedding for each.

    Args:
        model: a Hugging Face causal LM.

    Returns:
        Tokens, or None where any length can be read.
    """
    import torch

    for name, part in model.named_modules():
        if isinstance(part, torch.nn.Embedding) and ("wpe" in name or "position" in name):
            return getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return None


def _backends(plan: Mapping[str, Any]) -> dict[str, str]:
    """Attention pattern to the backend that computes it."""
    layers = plan.get("layers", [])
    return {str(layer.get("pattern", "attention")): str(layer["backend"]) for layer in layers if "backend" in layer}
