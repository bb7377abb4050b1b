"""A cache layer that drops the keys which its pattern can no longer see.

Every stored key carries its slot: the index of its token in the row, padding included, which is the same for all rows
of a batch. The mask of each forward says the logical position of every slot, and positions alone decide what is seen
and what is dropped. So a key that any row may still see is kept for all, and reordering rows moves no slot.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from transformers.cache_utils import DynamicLayer

from hf_longctx.compiling import eager
from hf_longctx.hf.places import Places
from hf_longctx.patterns import Pattern
from hf_longctx.patterns.geometry import Own
from hf_longctx.patterns.retention import most_kept

#: Bytes of the slot number that is stored for each key, on the CPU: nobody waits for a device to look at it.
SLOT_BYTES = 8

#: The keys that an `update` of a running forward has returned -> the layer they are of, and their slots.
_GIVEN = WeakTensorKeyDictionary()


def origin(keys: Tensor) -> tuple[EvictingLayer, Tensor] | None:
    """The layer whose `update` has returned these keys, and their slots (stored,); None for any other tensor.

    So an attention function knows what it is given, whatever its model hands on to it.
    """
    layer, slots = _GIVEN.get(keys, (None, None))
    layer = None if layer is None else layer()
    return None if layer is None else (layer, slots)


def room(columns: int) -> int:
    """Columns to set aside for `columns` keys: up to an eighth more, so that few tokens make the buffers move.

    >>> [room(n) for n in (5, 40, 1000, 1028)]
    [5, 40, 1024, 1152]
    """
    step = 1 << max(0, columns.bit_length() - 4)
    return -(-columns // step) * step


def most_columns(pattern: Pattern) -> int | None:
    """The most keys that a layer under `pattern` stores between two forwards, slack included; None where unbounded.

    The slack is at least an eighth of what the pattern needs: old keys are moved out once in so many tokens, not at
    every one. A batch whose rows are padded differently may need more.

    >>> from hf_longctx.patterns import Full, Global, SlidingWindow
    >>> most_columns(SlidingWindow(1024) | Global(4)), most_columns(SlidingWindow(6)), most_columns(Full())
    (1280, 6, None)
    """
    kept = most_kept(pattern)
    return None if kept is None else room(kept + kept // 8 + 1)


def columns(tokens: int, most: int | None) -> int:
    """Columns stored after `tokens` tokens by a layer of at most `most` columns."""
    return tokens if most is None else min(room(tokens), most)


class EvictingLayer(DynamicLayer):
    """The keys and values of one layer that queries to come may still see.

    `update` returns all stored keys and the new ones, since the queries of a chunk may see keys that later ones do
    not. `settle`, called after the attention, drops. Until `most_columns` tokens nothing is dropped; from there on the
    buffers never grow. Tokens may be taken back (`crop`) as far as the last drop; while past recording is on, nothing
    that a crop could bring back is dropped.

    Args:
        pattern: the layer's pattern, which must have a bound on the keys it keeps.

    Attributes:
        pattern: the same.
        keys: (B, Hkv, stored, D), a view of a buffer with a few columns to spare.
        values: (B, Hkv, stored, Dv), likewise.
        slots: (stored,) int64 on the CPU, ascending.
        seen: tokens seen, dropped ones included.

    Raises:
        ValueError: a pattern that keeps everything.
    """

    is_croppable = True

    def __init__(self, pattern: Pattern) -> None:
        super().__init__()
        most = most_columns(pattern)
        if most is None:
            raise ValueError(f"pattern {pattern} drops no key for good: use transformers' DynamicLayer for it")
        self.pattern = pattern
        self.record_past = False
        self._most = most
        self._clear()

    def _clear(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.slots: Tensor | None = None
        self.seen = 0
        self.is_initialized = False
        self._buffers: tuple[Tensor, Tensor, Tensor] | None = None
        self._open = False  # whether the running forward knows of this layer
        self._full = False  # whether the buffers are to be made anew
        self._confirmed = 0  # tokens that no crop can take back, while past recording is on
        self._floor = 0  # tokens seen when a key was last dropped

    # ------------------------------------------------------------------ a forward

    def open(self) -> None:
        """Let the next `update` in: the forward that is beginning will call `settle`."""
        self._open = True

    @eager
    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store new keys and values.

        Args:
            key_states: (B, Hkv, new, D).
            value_states: (B, Hkv, new, Dv).
            *args: not used.
            **kwargs: not used.

        Returns:
            Keys and values, (B, Hkv, stored + new, ...).

        Raises:
            ValueError: the model is not patched, so it would take the stored keys for all keys.
        """
        if not self._open:
            raise ValueError(
                f"this cache drops keys under the attention pattern {self.pattern}, but the model that uses it has "
                "no such pattern: start with an empty cache"
            )
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        new = torch.arange(self.seen, self.seen + key_states.shape[2])
        self.seen += len(new)
        if self.keys is None or self.values is None or self.slots is None:
            self._full, self._buffers = True, None
            self.keys, self.values, self.slots = key_states, value_states, new
        elif self._fits(key_states, value_states):
            self._append(key_states, value_states, new)
        else:
            self._full, self._buffers = True, None
            self.keys = torch.cat([self.keys, key_states], dim=2)
            self.values = torch.cat([self.values, value_states], dim=2)
            self.slots = torch.cat([self.slots, new])
        _GIVEN[self.keys] = weakref.ref(self), self.slots
        return self.keys, self.values

    def positions(self, places: Places, slots: Tensor | None = None) -> Tensor:
        """The logical positions of the stored keys.

        Args:
            places: of all tokens seen.
            slots: those of the keys, (stored,); where they have been moved out since, they are no longer its own.

        Returns:
            (B or 1, stored) int64.

        Raises:
            ValueError: the mask is of another length.
        """
        told = places.table.shape[1]
        slots = self.slots if slots is None else slots
        if told != self.seen or slots is None:
            raise ValueError(
                f"the cache has seen {self.seen} tokens, but the mask is for {told}: pass an attention_mask "
                "for all tokens, those in the cache included, and the cache as the model returned it"
            )
        return places.at(slots)

    def settle(self, places: Places) -> None:
        """Drop what no later query may see, if the buffers are full. Ends a forward.

        Args:
            places: as for `positions`.
        """
        self._open = False
        if not self._full or self.keys is None or self.values is None or self.slots is None:
            return
        kept, near = None, None
        sure = self._confirmed if self.record_past else self.seen
        if self.seen > self._most and sure:
            at = self.positions(places)
            kept, near = places.remember(
                ("kept", Own(self.pattern), id(at), sure), lambda: self._kept(places, at, sure)
            )
            self._floor = sure
        stored = len(self.slots) if kept is None else len(kept)
        size = min(room(self.seen), self._most)
        if stored >= size and self.seen > self._most:
            size = room(stored + stored // 8 + 1)
        self._buffers = (
            _moved(self.keys, kept, 2, size),
            _moved(self.values, kept, 2, size),
            _moved(self.slots, near, 0, size),
        )
        self._full = False
        self._show(stored)

    def _kept(self, places: Places, at: Tensor, sure: int) -> tuple[Tensor, Tensor]:
        """Which of the keys at positions `at` (B or 1, stored) a query after the first `sure` tokens may see.

        Their numbers, on the keys' device and on the CPU.
        """
        now = places.table[: len(at), :sure].amax(1, keepdim=True) + 1
        later = torch.as_tensor(self.pattern.keeps(at, now), device=at.device).expand(at.shape) & (at >= 0)
        later = later | (at >= now)  # `keeps` is asked of what is past; those to come are still to be seen
        kept = later.any(0).nonzero()[:, 0]
        return kept, kept.cpu()

    def _fits(self, key_states: Tensor, value_states: Tensor) -> bool:
        """Whether new columns can be written in place: there is room, and autograd or inference mode allow it."""
        if self._buffers is None or self.slots is None:
            return False
        graph = any(x.requires_grad for x in (key_states, value_states, *self._buffers))
        frozen = self._buffers[0].is_inference() and not torch.is_inference_mode_enabled()
        return not graph and not frozen and len(self.slots) + key_states.shape[2] <= len(self._buffers[2])

    def _append(self, key_states: Tensor, value_states: Tensor, new: Tensor) -> None:
        keys, values, slots = self._buffers  # type: ignore[misc]
        start = len(self.slots)  # type: ignore[arg-type]
        stop = start + len(new)
        keys[:, :, start:stop], values[:, :, start:stop], slots[start:stop] = key_states, value_states, new
        self._show(stop)

    def _show(self, stored: int) -> None:
        keys, values, slots = self._buffers  # type: ignore[misc]
        self.keys, self.values, self.slots = keys[:, :, :stored], values[:, :, :stored], slots[:stored]

    # ------------------------------------------------------------------ what transformers asks

    def get_seq_length(self) -> int:
        """Tokens seen, dropped ones included: the position of the next token follows from it."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The mask is for all tokens seen and the new ones."""
        return self.seen + query_length, 0

    def reset(self) -> None:
        """Forget everything."""
        self._clear()

    def activate_past_recording(self) -> None:
        """Drop nothing that a crop of tokens to come could bring back, until the crop has been."""
        self.record_past, self._confirmed = True, self.seen

    def crop(self, tokens_to_remove: int) -> None:
        """Take tokens back.

        Args:
            tokens_to_remove: 0 or less: minus the number of tokens to take back.

        Raises:
            ValueError: a positive number, or more tokens than can be taken back exactly.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"tokens_to_remove is {tokens_to_remove}: it must be 0, or minus the tokens to take back")
        left = self.seen + tokens_to_remove
        if left < self._floor:
            raise ValueError(
                f"cannot crop the cache from {self.seen} to {left} tokens: keys that those see under {self.pattern} "
                f"have been dropped at {self._floor} tokens. Copy the cache before going on (copy.deepcopy), or call "
                "cache.activate_past_recording() before the tokens that you will take back"
            )
        self.seen = self._confirmed = max(left, 0)
        if self.slots is None:
            return
        if not tokens_to_remove:
            self._full = self._full or len(self.slots) > self._most
            return
        stored = int((self.slots < self.seen).sum())
        self._full = self._full or stored > self._most
        if self._buffers is None:
            self.keys, self.values = self.keys[:, :, :stored], self.values[:, :, :stored]  # type: ignore[index]
            self.slots = self.slots[:stored]
        else:
            self._show(stored)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take rows `beam_idx` (B,), as beam search does."""
        self._rows(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times."""
        self._rows(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`."""
        self._rows(lambda x: x[indices, ...])

    def _rows(self, change: Any) -> None:
        """Change the rows of keys and values; slots are the same for all."""
        if self._buffers is not None and self.slots is not None:
            keys, values, slots = self._buffers
            self._buffers = change(keys), change(values), slots
            self._show(len(self.slots))
        elif self.keys is not None and self.values is not None:
            self.keys, self.values = change(self.keys), change(self.values)


def _moved(x: Tensor, kept: Tensor | None, dim: int, size: int) -> Tensor:
    """Columns `kept` of `x` (all if None), in a buffer of `size` columns."""
    x = x if kept is None else x.index_select(dim, kept)
    buffer = x.new_empty((*x.shape[:dim], size, *x.shape[dim + 1 :]))
    buffer.narrow(dim, 0, x.shape[dim]).copy_(x)
    return buffer
