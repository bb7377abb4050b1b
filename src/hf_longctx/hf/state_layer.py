"""The cache of a Mamba layer: a convolution's last inputs and a state, whatever the length."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import LinearAttentionLayer


class StateLayer(LinearAttentionLayer):
    """transformers' linear-attention layer, with what it lacks: rows are repeated and chosen, and states are replaced.

    States are replaced rather than overwritten, so that autograd and inference mode may hold on to old ones. Tokens
    cannot be taken back; copy the cache (`copy.deepcopy`) to go back to it.
    """

    is_croppable = False
    #: Whether a forward beside preallocated layers has begun and not come here yet.
    masking = False

    @property
    def is_compileable(self) -> bool:
        """Only while a forward makes its masks: that is how transformers knows that it must mask empty slots.

        Else it would compile around static addresses, and prepare 4-D masks from which padding cannot be told.
        """
        return self.masking

    @property
    def past(self) -> tuple[Tensor, Tensor] | None:
        """The convolution's inputs (B, channels, taps - 1) and the state (B, G, P, P); None before the first token.

        The state may be changed in place.
        """
        conv, state = self.conv_states[0], self.recurrent_states[0]
        if not self.has_previous_state[0] or conv is None or state is None:
            return None
        frozen = state.is_inference() and not torch.is_inference_mode_enabled()
        return conv, state.clone() if frozen else state

    def store(self, conv: Tensor, state: Tensor) -> None:
        """Remember what a forward left."""
        self.masking = False
        self.device, self.dtype = conv.device, conv.dtype
        self.conv_states[0], self.recurrent_states[0] = conv, state
        self.conv_kernel_size[0] = conv.shape[-1]
        for known in (self.is_conv_states_initialized, self.is_recurrent_states_initialized, self.has_previous_state):
            known[0] = True

    def reset(self) -> None:
        """Forget everything, the number of rows too."""
        LinearAttentionLayer.__init__(self)
        self.masking = False

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times."""
        if (past := self.past) is not None:
            self.store(*(t.repeat_interleave(repeats, dim=0) for t in past))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`."""
        if (past := self.past) is not None:
            self.store(*(t[indices, ...] for t in past))

    def crop(self, tokens_to_remove: int) -> None:
        """Take no token back.

        Raises:
            ValueError: any other number than 0.
        """
        if tokens_to_remove:
            raise ValueError(
                f"cannot take {abs(tokens_to_remove)} tokens back: a Mamba layer keeps a state, not its tokens. Copy "
                "the cache before going on (copy.deepcopy), and go on from the copy"
            )

    def update(self, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        """Take no keys.

        Raises:
            ValueError: always: this layer is no attention layer.
        """
        raise ValueError(
            "this cache was made for a model with Mamba layers, and the model that uses it has attention there: start "
            "with an empty cache"
        )
