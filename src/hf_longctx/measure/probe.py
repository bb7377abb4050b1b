"""Probe once, ask often: read a text once, ask many questions of the cached reading.

A `Reader` holds a model and the cache of what it has read. Feeding it goes on from there; forking it gives a second
reader that may read on by itself. The cache is cloned, never cropped: windows and recurrent states cannot be cropped.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from .listener import Listener

CHUNK = 2048
"""Tokens of one forward call while reading."""

# The end of the text counts as one of the sentence: no value holds a full stop, so nothing is cut short.
_SENTENCE_END = re.compile(r"\S[.!?](\s|$)")


@dataclass(frozen=True)
class Reply:
    """What a model answered.

    Attributes:
        ids: generated token ids, greedy, without the end-of-text token.
        text: the same as text.
        first_logits: (vocabulary,) float32 on the CPU, logits of the first answer token.
    """

    ids: tuple[int, ...]
    text: str
    first_logits: torch.Tensor


class Reader:
    """A model and what it has read so far.

    Args:
        model: a Hugging Face causal LM, patched or not.
        chunk: tokens of one forward call.
        on_tokens: called with the number of tokens after each call.
        listener: takes the logits of chosen tokens on the way; forks have none.
    """

    def __init__(
        self,
        model: Any,
        *,
        chunk: int = CHUNK,
        on_tokens: Callable[[int], object] | None = None,
        listener: Listener | None = None,
    ) -> None:
        self._model = model
        self._chunk = chunk
        self.on_tokens = on_tokens
        self._listener = listener
        self._cache: Any = None
        self.position = 0

    def feed(self, ids: Sequence[int]) -> torch.Tensor | None:
        """Read on.

        Args:
            ids: token ids that follow what has been read.

        Returns:
            (vocabulary,) logits after the last token, or None if there was none.
        """
        import torch

        from hf_longctx.hf.cache_argument import cache_name, cache_of

        logits = None
        for start in range(0, len(ids), self._chunk):
            piece = torch.tensor([list(ids[start : start + self._chunk])], device=self._model.device)
            count = piece.shape[1]
            places = torch.arange(self.position, self.position + count, device=piece.device)[None]
            wanted = self._listener.wanted(self.position, count) if self._listener is not None else []
            with torch.no_grad():
                # The model builds its own cache at the first call, so a patched model gets the layers it needs.
                out = self._model(
                    input_ids=piece,
                    position_ids=places,
                    use_cache=True,
                    logits_to_keep=torch.tensor([*wanted, count - 1]) if wanted else 1,
                    **{cache_name(): self._cache},
                )
            self._cache = cache_of(out)
            self.position += count
            logits = out.logits[0, -1]
            if self._listener is not None and wanted:
                self._listener.hear(out.logits[0, :-1])
            if self.on_tokens is not None:
                self.on_tokens(count)
        return logits

    def fork(self) -> Reader:
        """A second reader that has read the same; neither disturbs the other.

        Returns:
            The reader.
        """
        other = Reader(self._model, chunk=self._chunk, on_tokens=self.on_tokens)
        other._cache = clone_cache(self._cache)
        other.position = self.position
        return other


def clone_cache(cache: Any) -> Any:
    """A cache that can be written to without changing the original.

    Args:
        cache: any cache of transformers, or None.

    Returns:
        The clone. transformers' own dynamic attention layers never write into their tensors, they concatenate new
        ones, so those share memory; every other kind of layer is copied in full.
    """
    if cache is None:
        return None
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    if type(cache) is not DynamicCache:
        return copy.deepcopy(cache)
    clone = copy.copy(cache)
    appending = (DynamicLayer, DynamicSlidingWindowLayer)
    clone.layers = [copy.copy(layer) if type(layer) in appending else copy.deepcopy(layer) for layer in cache.layers]
    return clone


def ask(
    reader: Reader,
    tail: Sequence[int],
    *,
    limit: int,
    decode: Callable[[Iterable[int]], str],
    stops: frozenset[int],
    one_sentence: bool = False,
    done: Callable[[str], bool] | None = None,
) -> Reply:
    """Put a question and decode the answer greedily.

    Args:
        reader: what to ask; it reads on, so pass a fork.
        tail: token ids of the question, at least one.
        limit: most tokens to decode.
        decode: ids to text.
        stops: ids that end a text.
        one_sentence: whether the answer ends with its first sentence; it always ends with its first line.
        done: given the text so far, whether the answer is complete; takes the place of sentences and lines.

    Returns:
        The answer.

    Raises:
        ValueError: for an empty tail.
    """
    logits = reader.feed(tail)
    if logits is None:
        raise ValueError("tail is empty: a question needs at least one token")
    reader.on_tokens = None  # the tokens counted are those read, not those said
    first = logits.float().cpu()
    ids: list[int] = []
    while len(ids) < limit:
        token = int(logits.argmax())
        if token in stops:
            break
        ids.append(token)
        said = decode(ids)
        complete = done(said) if done is not None else _is_complete(said, one_sentence=one_sentence)
        if len(ids) == limit or complete:
            break
        logits = reader.feed([token])
        if logits is None:
            break
    return Reply(tuple(ids), decode(ids), first)


def stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Ids that end a text, from the generation config and the tokenizer.

    Args:
        model: a Hugging Face causal LM.
        tokenizer: its tokenizer.

    Returns:
        Token ids; may be empty.
    """
    config = getattr(model, "generation_config", None)
    found = [tokenizer.eos_token_id, getattr(config, "eos_token_id", None), model.config.eos_token_id]
    flat = [one for item in found for one in (item if isinstance(item, list | tuple) else [item])]
    return frozenset(int(one) for one in flat if one is not None)


def _is_complete(text: str, *, one_sentence: bool) -> bool:
    said = text.lstrip()
    return "\n" in said or (one_sentence and _SENTENCE_END.search(said) is not None)


@dataclass(frozen=True)
class Branch:
    """One question of a group that shares a reading.

    Attributes:
        at: trunk tokens read before it branches off.
        rest: token ids that follow there, the question last.
        limit: most tokens to decode.
    """

    at: int
    rest: tuple[int, ...]
    limit: int


def ask_all(
    reader: Reader,
    trunk: Sequence[int],
    branches: Sequence[Branch],
    *,
    wanted: Callable[[int], bool],
    decode: Callable[[Iterable[int]], str],
    stops: frozenset[int],
    one_sentence: bool,
    through: bool = False,
) -> Iterator[tuple[int, Reply]]:
    """Read a trunk and ask at each branch.

    The reading stops at every branch, wanted or not: a resumed run then cuts its forward calls where the first one
    did, and computes the same numbers. The last branch is read by the reader itself: nothing follows it.

    Args:
        reader: has read nothing yet.
        trunk: token ids that the branches share.
        branches: by ascending place.
        wanted: whether the question of that index is asked.
        decode: ids to text.
        stops: ids that end a text.
        one_sentence: see `ask`.
        through: whether all of it is read, the last branch too, even where no question is wanted.

    Yields:
        Index of the branch and its answer.
    """
    end = len(branches) - 1
    last = end if through else max((index for index in range(len(branches)) if wanted(index)), default=-1)
    for index, branch in enumerate(branches[: last + 1]):
        reader.feed(trunk[reader.position : branch.at])
        if not wanted(index):
            if index == end:
                reader.feed(branch.rest)
        else:
            fork = reader if index == end else reader.fork()
            yield (
                index,
                ask(fork, branch.rest, limit=branch.limit, decode=decode, stops=stops, one_sentence=one_sentence),
            )
