"""The model card of an extended model, as it is published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_longctx.measure.runs import EXTENSION, Part

TITLE = "Model card"


def build(part: Part, overlay: Sequence[Any]) -> dict[str, Any] | None:
    """The card's text."""
    if part.kind != EXTENSION or not part.summary["card"]:
        return None
    return {"card": part.summary["card"]}
