r"""Patched models under EleutherAI's lm-evaluation-harness, with its maximum length set and no prompt cut.

The harness finds models by name in a registry of its own, which no installed package can write to from outside. So its
command is started through this module, which registers the name `hf_longctx` and hands over:

    python -m hf_longctx.measure.lm_eval --model hf_longctx \
        --model_args pretrained=demo,rope=yarn:2,max_length=16384 --tasks lambada_openai --limit 20

`pretrained` is a hub id, a folder or `demo`; `attention`, `rope` and `mamba` are text forms, as in `hf_longctx.patch`.
A form with a comma in it is written as JSON: `--model_args '{"pretrained": "demo", "attention": "dilated:512,4"}'`.
From Python:

    import lm_eval
    from hf_longctx.measure.lm_eval import longctx_lm

    lm = longctx_lm("demo", rope="yarn:2", max_length=16384)
    lm_eval.simple_evaluate(model=lm, tasks=["lambada_openai"], limit=20)

The harness cuts prompts that are too long from the left and scores what is left, which drops the needles of shallow
depths and calls them missed. Here such a prompt raises instead.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

NAME = "hf_longctx"
"""What the harness calls these models."""


def longctx_lm(pretrained: Any, **options: Any) -> Any:
    """A model for the harness's `simple_evaluate(model=...)`.

    Args:
        pretrained: hub id, local folder, `demo`, or a loaded causal LM, which may be patched already.
        **options: `tokenizer` of a loaded model, not given for a name; `attention`, `rope` and `mamba`, text forms to
            patch it with; `max_length`, most tokens of a prompt and its answer, None takes what the patched config
            claims; `dtype` and `device` as `load_model`, for a name; and what the harness's `HFLM` takes, such as
            `batch_size`.

    Returns:
        An instance of a subclass of `lm_eval.models.huggingface.HFLM`. A loaded model is patched in place.

    Raises:
        ModuleNotFoundError: the package lm-eval is missing.
        ValueError: a maximum below 1, a loaded model without its tokenizer, or a patch that cannot work.
    """
    return register()(pretrained, **options)


@lru_cache(maxsize=1)
def register() -> type:
    """Give the harness the models under their name.

    Returns:
        Their class.

    Raises:
        ModuleNotFoundError: the package lm-eval is missing.
    """
    try:
        from lm_eval.api.registry import register_model
        from lm_eval.models.huggingface import HFLM
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'the bridge to lm-evaluation-harness needs the package lm-eval: pip install "hf_longctx[lm-eval]"'
        ) from error

    class LongctxLM(HFLM):
        """HFLM over a patched model, which refuses what it would cut."""

        def __init__(
            self,
            pretrained: Any,
            tokenizer: Any = None,
            attention: str | None = None,
            rope: str | None = None,
            mamba: str | None = None,
            max_length: int | None = None,
            dtype: str | None = None,
            device: str | None = None,
            **options: Any,
        ) -> None:
            """Load and patch, as `longctx_lm` says."""
            model, tokenizer = _load(pretrained, tokenizer, max_length=max_length, dtype=dtype, device=device)
            if any(text is not None for text in (attention, rope, mamba)):
                from hf_longctx import patch

                patch(model, attention=attention, rope=rope, mamba=mamba)
            config = model.config.get_text_config(decoder=True)
            limit = max_length or getattr(config, "max_position_embeddings", None)
            super().__init__(pretrained=model, tokenizer=tokenizer, max_length=limit, **options)

        def tok_batch_encode(
            self,
            strings: list[str],
            padding_side: str = "left",
            left_truncate_len: int | None = None,
            truncation: bool = False,
        ) -> Any:
            """Encode a batch; raises ValueError where the harness would cut."""
            ids, mask = super().tok_batch_encode(strings, padding_side=padding_side)
            if left_truncate_len is not None:
                _refuse(ids.shape[1], left_truncate_len)
            return ids, mask

        def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
            for _, context, continuation in requests:
                # The last token is only predicted, never read.
                _refuse(len(context) + len(continuation) - 1, self.max_length)
            return super()._loglikelihood_tokens(requests, *args, **kwargs)

    return register_model(NAME)(LongctxLM)


def main() -> None:
    """The harness's own command line, with the name `hf_longctx` registered."""
    register()
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


def _load(
    pretrained: Any, tokenizer: Any, *, max_length: int | None, dtype: str | None, device: str | None
) -> tuple[Any, Any]:
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length={max_length}: give at least 1 token")
    if not isinstance(pretrained, str):
        if tokenizer is None:
            raise ValueError("tokenizer=None: pass the tokenizer of the loaded model")
        return pretrained, tokenizer
    if tokenizer is not None:
        raise ValueError("tokenizer is given beside a name: leave it out, or pass the loaded model")
    from hf_longctx.hf.loading import load_model

    return load_model(pretrained, dtype=dtype, device=device)


def _refuse(tokens: int, limit: int) -> None:
    if tokens > limit:
        raise ValueError(
            f"a prompt has {tokens} tokens and there is room for {limit}, the answer's left out: raise max_length, or "
            "choose shorter prompts; none is cut"
        )


if __name__ == "__main__":
    main()
