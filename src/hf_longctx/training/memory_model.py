"""What a training step holds in memory, by formula: bytes of weights, gradients, optimizer, activations and logits.

* weights, gradients and AdamW's two moments: counted on the model that `tuning.make_trainable` makes, built without
  memory; what is trained is float32 under autocast (Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1);
* activations: a layer's are `activations.layer_tokens`. Checkpointing keeps the input of each layer, and has one
  layer's inside at a time (Chen et al. 2016, arXiv 1604.06174, section 3);
* logits: 12 bytes each at the peak, in the backward of cross entropy: log-softmax, its gradient, and the gradient of
  the logits, all float32. In tiles there are those of one tile only (`tiled_loss`).

These do not add up to the peak: logits are gone when the first layer's gradients are there. `moments` says what is
there when.
"""

from __future__ import annotations

from dataclasses import dataclass

from hf_longctx.measure.cost_model import FLASH, cost

from .activations import layer_tokens
from .held_out import CHUNK
from .tiled_loss import tile_rows
from .trained_sizes import SINGLE, Setting, Sizes

#: Bytes a logit at the peak of cross entropy's backward.
LOGIT = 3 * SINGLE


def kept_bytes(s: Sizes, how: Setting) -> int:
    """Bytes that all layers keep from the forward to the backward pass."""
    one = layer_tokens(s, how)
    if how.checkpointing:
        return s.shape.layers * one.kept * how.tokens
    # The input is saved as such only where it is float32: else it is gone once its float32 copy is there.
    inputs = one.kept if how.stream >= SINGLE else 0
    return s.shape.layers * ((inputs + one.saved) * how.tokens + _cast(s.layer_matrices, how))


def logits_bytes(s: Sizes, how: Setting) -> int:
    """Bytes of logits and their gradients at the peak of the loss."""
    rows = min(how.tokens, tile_rows(s.shape.vocabulary)) if how.tile else how.tokens
    return LOGIT * rows * s.shape.vocabulary


def _cast(matrices: int, how: Setting) -> int:
    """Bytes of the 16-bit copies of matrices that are float32."""
    return 2 * matrices if how.autocast and (how.tune == "full" or how.itemsize == SINGLE) else 0


@dataclass(frozen=True)
class Held:
    """Bytes that a step holds from its first moment to its last, on one device.

    Attributes:
        weights: trained and frozen.
        gradients: of all that is trained, at their most.
        optimizer: AdamW's two moments.
        shared: what several devices need to share: gradients laid out for sending (DistributedDataParallel's buckets),
            or, sharded, gathered layers: the one that computes, the next one, and those outside of layers.
    """

    weights: int
    gradients: int
    optimizer: int
    shared: int


def held(s: Sizes, how: Setting) -> Held:
    """Weights, gradients and optimizer of one device.

    Sharded, each device has its share of all three, and gathers a layer when it needs it (ZeRO-3: arXiv 1910.02054,
    section 5.3).
    """
    share = how.devices if how.shard else 1
    weights = s.trained * how.master + s.frozen * how.itemsize
    shared = 0
    if how.shard:
        outside = s.shape.parameters - s.shape.layers * s.layer
        shared = how.product * (2 * s.layer + max(outside, 0) + s.layer_trained)
    elif how.devices > 1:
        shared = s.trained * how.master
    gradients = s.trained * how.master
    return Held(-(-weights // share), -(-gradients // share), -(-2 * gradients // share), shared)


def moments(s: Sizes, how: Setting) -> dict[str, int]:
    """Bytes held at each moment that can be a step's peak, the optimizer's moments being there already.

    * loss: every layer's activations; the last norm's input, its result before and after the weight, and its gradient
      twice; logits; the output matrix's gradient and a tile's part of it. Autocast's copies of weights are gone.
    * last layer, first layer: a layer's backward, with the inputs of those before it and the gradients of those behind
      it. What lies between them is between them.
    * embedding: all gradients, and once more the embedding's where it is the output matrix too.
    * forward: autocast's copies of the weights that are trained, which live as long as the forward pass.
    * optimizer: all gradients, and what AdamW makes: on CUDA the square root of all second moments (`foreach`, as
      torch.optim.AdamW documents: about the size of the parameters), on a CPU two of the largest tensor's size.
    * reading: weights, keys and values of the window, and a chunk, when perplexity is measured before and after.
    """
    always = held(s, how)
    base = always.weights + always.optimizer + always.shared
    share = how.devices if how.shard else 1
    one, n, h = layer_tokens(s, how), how.tokens, s.shape.hidden
    kept, logits, head = kept_bytes(s, how), logits_bytes(s, how), s.head * how.master
    inside = (one.peak if how.checkpointing else one.peak - one.saved) * n
    if how.checkpointing:
        inside += _cast(s.layer_matrices, how)
    layer = s.layer_trained * how.master
    end = n * h * (max(how.stream, SINGLE) + (4 if how.tune != "lora" else 3) * how.stream)
    tied = s.head * how.master if s.tied else 0
    temporary = s.trained * how.master // share if how.cuda else 2 * s.largest * how.master
    cast = 2 * s.trained if how.autocast else 0
    first = (one.kept if how.checkpointing else one.saved) * n
    found = {
        "forward": base + cast // share + kept,
        "loss": base + kept + end + logits + (2 if how.tile else 1) * head,
        "last layer": base + kept + inside + head // share + layer,
        "first layer": base + first + inside + always.gradients,
        "embedding": base + always.gradients + tied + 2 * one.kept * n,
        "optimizer": base + always.gradients + temporary,
    }
    return found | {"reading": always.weights + _reading(s, how)}


def _reading(s: Sizes, how: Setting) -> int:
    """Bytes beside the weights of reading the whole window once, in chunks."""
    size = how.itemsize if how.tune != "full" else how.master
    a = s.shape
    repeated = 2 * how.window * a.heads * a.head_dim * size if a.heads > a.shape.kv_heads else 0
    return cost(a, FLASH, how.window, itemsize=size, chunk=CHUNK, count=False).working_bytes + repeated


def cache_bytes(s: Sizes, how: Setting) -> int:
    """Bytes of keys and values of the whole window, in all layers, as measuring and `generate` hold them."""
    size = how.itemsize if how.tune != "full" else how.master
    return cost(s.shape, FLASH, how.window, itemsize=size, chunk=CHUNK, count=False).cache_bytes
