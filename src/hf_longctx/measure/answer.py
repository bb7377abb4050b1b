"""One prompt of a task, read and answered: what a row says of it."""

from __future__ import annotations

from typing import Any

from .probe import ask, stop_ids
from .prompts import Codec
from .subject import reading
from .tasks import Prompt

_EXCERPT_TOKENS = 40


def answer(model: Any, codec: Codec, prompt: Prompt) -> dict[str, Any]:
    """Ask a model; running out of memory is an answer.

    Args:
        model: a Hugging Face causal LM, patched or not.
        codec: its tokenizer.
        prompt: what it is asked.

    Returns:
        `outcome`, `score`, `answer` and `cut` (whether its tokens ran out before its score was full); or `reason`.
    """
    import torch

    try:
        with reading(model, prompt.length) as reader:
            # Once the score is full, whatever may follow, nothing more can change it.
            reply = ask(
                reader,
                prompt.ids,
                limit=prompt.budget,
                decode=codec.decode,
                stops=stop_ids(model, codec.tokenizer),
                done=prompt.settled,
            )
    except torch.OutOfMemoryError:
        return {"reason": "out of memory"}
    score = prompt.score(reply.text)
    return {
        "outcome": "hit" if score == 1.0 else "miss",
        "score": score,
        "answer": reply.text,
        "cut": len(reply.ids) == prompt.budget and score < 1.0,
    }


def excerpt(codec: Codec, prompt: Prompt) -> dict[str, str]:
    """The text around the first needle: `before`, `needle`, `after`; the end of the prompt where there is none."""
    start, stop = prompt.needles[0] if prompt.needles else (len(prompt.ids), len(prompt.ids))
    return {
        "before": codec.decode(prompt.ids[max(0, start - _EXCERPT_TOKENS) : start]),
        "needle": codec.decode(prompt.ids[start:stop]),
        "after": codec.decode(prompt.ids[stop : stop + _EXCERPT_TOKENS]),
    }
