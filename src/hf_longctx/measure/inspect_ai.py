"""Our tasks and patched models under inspect-ai, found by it through the entry point group `inspect_ai`.

    inspect eval hf_longctx/niah_single_2 --model openai/gpt-4o -T tokenizer=PATH -T length=8k
    inspect eval hf_longctx/variable_tracking --model hf_longctx/demo -M rope=yarn:2 -T tokenizer=demo -T length=12k

A task is made by our generator and scored by our scorer: the same seed gives the same text as `hf-longctx` asks in
the style `base`, one user's message that ends with the answer's beginning. Its length counts that text in tokens of
the given tokenizer and the answer's budget; a chat template comes on top, so leave room for it. The model
`hf_longctx/NAME` is loaded, patched, and asked greedily; a prompt that does not fit raises and is never cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .evaluate import prompt_seed
from .tasks import find, names

try:
    from anyio import to_thread
    from inspect_ai import Task, task
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.model import (
        ChatCompletionChoice,
        ChatMessage,
        ChatMessageAssistant,
        GenerateConfig,
        ModelAPI,
        ModelOutput,
        ModelUsage,
        modelapi,
    )
    from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
    from inspect_ai.solver import TaskState, generate
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'tasks and models for inspect need the package inspect-ai: pip install "hf_longctx[inspect]"'
    ) from error

_ANSWER = 256
"""Most tokens of an answer where the caller names no number."""


@scorer(metrics=[mean(), stderr()], name="longctx_score")  # type: ignore[untyped-decorator]
def longctx_score() -> Scorer:
    """The task's own score, from 0 to 1 (see `tasks.scoring`).

    Returns:
        The scorer; it reads the task's name from the sample's metadata.
    """
    from .tasks.scoring import score as points

    async def score(state: TaskState, target: Target) -> Score:
        said = state.output.completion
        task = find(state.metadata["task"])
        return Score(value=points(said, list(target), task.rule, whole=task.whole), answer=said)

    return score


def _builder(name: str) -> Callable[..., Task]:
    def build(
        tokenizer: str | None = None,
        length: int | str = 4096,
        samples: int = 20,
        seed: int = 0,
        depth: float | None = None,
        haystack: str | None = None,
        files: str | None = None,
        control: str | None = None,
    ) -> Task:
        from hf_longctx.hf.loading import load_tokenizer
        from hf_longctx.rope.text import read_length

        from .prompts import Codec

        if tokenizer is None:
            raise ValueError(
                f"task {name!r} counts tokens: give the tokenizer of the model under test, such as -T tokenizer=demo "
                "or -T tokenizer=FOLDER"
            )
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
            raise ValueError(f"samples={samples!r}: give a whole number, at least 1")
        made, tokens = load_tokenizer(tokenizer), read_length(str(length))
        options: dict[str, Any] = {"style": "base", "haystack": haystack, "files": files, "control": control}
        decode, found = Codec(made).decode, []
        for trial in range(samples):
            prompt = find(name)(made, tokens, prompt_seed(seed, trial), depth, **options)
            metadata = {
                "task": name,
                "length": tokens,
                "depth": prompt.depth,
                "unique_share": prompt.unique_share,
                "overlap": prompt.overlap,
                "control": control,
            }
            found.append(Sample(decode(prompt.ids), target=list(prompt.expected), id=trial, metadata=metadata))
        config = GenerateConfig(max_tokens=find(name).budget, temperature=0.0)
        return Task(dataset=MemoryDataset(found, name=name), solver=generate(), scorer=longctx_score(), config=config)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = find(name).summary
    return build


for _name in names():
    globals()[_name] = task(name=_name)(_builder(_name))


@modelapi(name="hf_longctx")
class LongctxAPI(ModelAPI):
    """A model loaded by name and patched, asked greedily, one prompt at a time.

    Args:
        model_name: hub id, local folder or `demo`.
        base_url: of no use here.
        api_key: of no use here.
        config: inspect's settings.
        max_length: most tokens of a prompt and its answer; None takes what the patched config claims.
        dtype: as `load_model`.
        device: as `load_model`.
        **plan: what to patch it with: `attention`, `rope` and whatever else `hf_longctx.patch` takes, in text form.

    Raises:
        ValueError: no such model, a maximum below 1, or a patch that cannot work.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        *,
        max_length: int | None = None,
        dtype: str | None = None,
        device: str | None = None,
        **plan: str,
    ) -> None:
        from hf_longctx import patch
        from hf_longctx.hf.loading import load_model

        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length={max_length}: give at least 1 token")
        self._model, self._tokenizer = load_model(model_name, dtype=dtype, device=device)
        if plan:
            patch(self._model, **plan)
        claimed = getattr(self._model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        self._limit = max_length or claimed

    async def generate(
        self, input: list[ChatMessage], tools: list[Any], tool_choice: Any, config: GenerateConfig
    ) -> ModelOutput:
        """Answer a conversation.

        Args:
            input: its messages; the chat template renders them, where there is one.
            tools: must be empty.
            tool_choice: of no use here.
            config: `max_tokens` and `stop_seqs` are kept; a temperature above 0 is refused.

        Returns:
            The answer, with its tokens counted.

        Raises:
            ValueError: for tools, sampling, or a prompt that does not fit.
        """
        if tools:
            raise ValueError(f"tools holds {len(tools)} tools, and this model calls none: leave them out")
        if config.temperature:
            raise ValueError(f"temperature={config.temperature}: answers are greedy, leave it out or give 0")
        return await to_thread.run_sync(self._answer, self._ids(input), config)

    def max_connections(self) -> int:
        """One prompt at a time: the model has one cache, and memory for one."""
        return 1

    def _ids(self, messages: list[ChatMessage]) -> list[int]:
        given = [{"role": message.role, "content": message.text} for message in messages]
        if getattr(self._tokenizer, "chat_template", None):
            text = self._tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=True)
            ids = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
            # A template that leaves the BOS token to the tokenizer gets the tokenizer's.
            bos = list(self._tokenizer("")["input_ids"])
            return ids if not bos or ids[: len(bos)] == bos else [*bos, *ids]
        return list(self._tokenizer("\n\n".join(one["content"] for one in given))["input_ids"])

    def _answer(self, ids: list[int], config: GenerateConfig) -> ModelOutput:
        from .probe import ask, stop_ids
        from .prompts import Codec
        from .subject import reading

        budget, ends = config.max_tokens or _ANSWER, config.stop_seqs or []
        if self._limit is not None and len(ids) + budget > self._limit:
            raise ValueError(
                f"a prompt has {len(ids)} tokens, its answer {budget}, and there is room for {self._limit}: raise "
                "max_length, or choose shorter prompts; none is cut"
            )
        with reading(self._model, len(ids) + budget) as reader:
            reply = ask(
                reader,
                ids,
                limit=budget,
                decode=Codec(self._tokenizer).decode,
                stops=stop_ids(self._model, self._tokenizer),
                done=lambda said: any(end in said for end in ends),
            )
        said = reply.text
        for end in ends:
            said = said.split(end)[0]
        cut = len(reply.ids) == budget
        message = ChatMessageAssistant(content=said, model=self.model_name, source="generate")
        return ModelOutput(
            model=self.model_name,
            choices=[ChatCompletionChoice(message=message, stop_reason="max_tokens" if cut else "stop")],
            usage=ModelUsage(
                input_tokens=len(ids), output_tokens=len(reply.ids), total_tokens=len(ids) + len(reply.ids)
            ),
        )
