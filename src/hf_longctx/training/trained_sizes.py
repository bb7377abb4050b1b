"""What is trained, and how: the numbers that a training step's memory follows from, counted without memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_longctx.hf.architecture import Architecture, architecture
from hf_longctx.hf.loading import skeleton

from .tuning import make_trainable, projections

#: Bytes of a float32.
SINGLE = 4


@dataclass(frozen=True)
class Setting:
    """How a step is trained.

    Attributes:
        tune: `full`, `lora` or `lora-plus`.
        length: tokens of a sequence.
        window: tokens that the model is for afterwards.
        itemsize: bytes of a number in the weights that are loaded.
        autocast: whether matrices are multiplied in bfloat16, and what is trained is float32.
        cuda: on a CUDA device, whose optimizer and attention hold other things than a CPU's.
        micro_batch: sequences at once.
        rank: of LoRA.
        checkpointing: whether activations are computed again.
        tile: whether the loss is computed in tiles.
        devices: how many share the batch.
        shard: whether they share weights, gradients and optimizer too (FSDP, ZeRO-3).
    """

    tune: str
    length: int
    window: int
    itemsize: int = 2
    autocast: bool = True
    cuda: bool = True
    micro_batch: int = 1
    rank: int = 8
    checkpointing: bool = True
    tile: bool = True
    devices: int = 1
    shard: bool = False

    @property
    def tokens(self) -> int:
        """Of a step on one device."""
        return self.length * self.micro_batch

    @property
    def master(self) -> int:
        """Bytes of a number that is trained, of its gradient, and of each of its two moments."""
        return SINGLE if self.autocast else self.itemsize

    @property
    def product(self) -> int:
        """Bytes of a number in a matrix product."""
        return 2 if self.autocast else self.itemsize

    @property
    def stream(self) -> int:
        """Bytes of a number in the residual stream: the embedding's."""
        return self.itemsize if self.tune == "lora" else self.master


@dataclass(frozen=True)
class Sizes:
    """What is trained of a model, in numbers.

    Attributes:
        shape: the model's sizes.
        trained: numbers that are trained.
        frozen: the others, with what LoRA-plus keeps of the modules that it copies.
        largest: of the trained tensors.
        layer: of the largest layer, trained or not.
        layer_trained: those that are trained.
        layer_matrices: of its matrices.
        head: numbers of the output matrix that are trained, 0 where none are.
        tied: whether the output matrix is the embedding.
        norms: RMSNorms over the stream, a layer.
        head_norms: whether queries and keys have norms of their own, over a head.
        inputs: linear layers that read the first norm's output.
    """

    shape: Architecture
    trained: int
    frozen: int
    largest: int
    layer: int
    layer_trained: int
    layer_matrices: int
    head: int
    tied: bool
    norms: int
    head_norms: bool
    inputs: int


def sizes(config: Any, tune: str, rank: int) -> Sizes:
    """Count what is trained, on the model that `extend` would train, built without memory.

    Args:
        config: a transformers configuration of a causal language model; of a model for several kinds of input, its
            text part.
        tune: `full`, `lora` or `lora-plus`.
        rank: of LoRA.

    Raises:
        ValueError: layers without attention, for whose training there are no formulas here.

    >>> from transformers import LlamaConfig
    >>> found = sizes(LlamaConfig(), "lora", 8)  # Llama 2 7B: A and B of four 4096 x 4096 matrices in 32 layers
    >>> found.trained == 32 * 4 * 8 * (4096 + 4096), found.frozen
    (True, 6738415616)
    """
    config = config.get_text_config(decoder=True)
    shape = architecture(config)
    if any(state is not None for state in shape.states):
        raise ValueError(
            f"{shape.name} has layers without attention, and what their training holds is not known here: plan a "
            "model of attention layers"
        )
    model = skeleton(config)
    layers = model.get_decoder().layers
    widest = max(layers, key=lambda layer: sum(p.numel() for p in layer.parameters()))
    widths = [m.weight.shape[0] for m in widest.modules() if type(m).__name__.endswith("Norm")]
    layer = sum(p.numel() for p in widest.parameters())
    matrices = sum(p.numel() for p in widest.parameters() if p.ndim > 1)
    inputs = max(1, len(projections(model)) - 1)
    tied = bool(getattr(config, "tie_word_embeddings", False))
    trainable = make_trainable(model, tune, rank=rank, alpha=rank, seed=0)
    moving = [p.numel() for p in trainable.parameters() if p.requires_grad]
    return Sizes(
        shape=shape,
        trained=sum(moving),
        frozen=sum(p.numel() for p in trainable.parameters()) - sum(moving),
        largest=max(moving),
        layer=layer,
        layer_trained=sum(p.numel() for p in widest.parameters() if p.requires_grad),
        layer_matrices=matrices,
        head=shape.vocabulary * shape.hidden if tune == "full" or (tune == "lora-plus" and tied) else 0,
        tied=tied,
        norms=sum(width == shape.hidden for width in widths),
        head_norms=shape.hidden != shape.head_dim in widths,
        inputs=inputs,
    )
