"""The student of a distillation: the mixers of a model, and what each stage lowers. Teacher and student are one model.

The teacher is the same model with its attention modules put back for the length of a forward, so that nothing is held
twice. Only the mixers belong to this module: a trainer moves, trains and saves them and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from hf_longctx.hf.mixers import as_teacher, mixers

from .packing import IGNORED
from .tiled_loss import TILE_BYTES, head

#: A teacher's output smaller than this, squared and summed, does not count as something to be relative to.
_NOTHING = 1e-12
#: Scales learn so many times as fast, in shares of themselves, as other parameters do in their own units.
_SPEED = 10.0


class Student(nn.Module):
    """The mixers of a model, called as a trainer calls a model; the loss is that of the objective.

    Args:
        model: a model converted in memory, its attention modules standing by; frozen but for its mixers.
        objective: one of `phases.OBJECTIVES`.
        checkpointing: whether activations are computed again in the backward pass.
    """

    whole: Any

    def __init__(self, model: Any, objective: str, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.mixers = nn.ModuleDict({str(index): mixer for index, mixer in mixers(model).items()})
        vars(self)["whole"] = model  # no submodule: its weights are not this module's
        self.objective, self._checkpointing = objective, checkpointing

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """The loss, a mean over tokens.

        Args:
            input_ids: (B, L).
            position_ids: (B, L), restarting where packed documents begin.
            attention_mask: (B, L), 0 for padding; None where all tokens are real.
            labels: (B, L) not shifted, `IGNORED` where a token is no target; None takes all real ones.
            num_items_in_batch: targets of the whole optimizer step, where this is a part of it.
            **kwargs: the rest of the trainer's contract; not used.
        """
        inputs = {"input_ids": input_ids, "position_ids": position_ids, "attention_mask": attention_mask}
        targets = next_tokens(input_ids, attention_mask, labels)
        given = int(targets.ne(IGNORED).sum())
        lower = {"align": self._align, "match": self._match, "text": self._text}[self.objective]
        loss = lower(inputs, targets)
        if num_items_in_batch is not None:
            loss = loss * (given / float(num_items_in_batch))
        return {"loss": loss}

    # -- one objective each: a mean over the tokens of this call

    def _align(self, inputs: dict[str, Any], targets: Tensor) -> Tensor:
        """Squared error of each mixer's output over the squares of the attention's, a mean over layers and rows.

        All layers in one forward of the teacher: each mixer reads what its attention read. A row is relative to itself
        and counts by its targets, so that the loss of a batch does not depend on how the batch is split.
        """
        mask, grads = inputs["attention_mask"], torch.is_grad_enabled()
        weight = targets.ne(IGNORED).sum(-1).float()
        weight = weight / weight.sum().clamp_min(1)
        losses: list[Tensor] = []

        def visit(mixer: Any, hidden: Tensor, given: dict[str, Any], wanted: Tensor) -> None:
            def error(hidden: Tensor) -> Tensor:
                made, _ = mixer(hidden, **given)
                keep = torch.ones_like(hidden[..., :1]) if mask is None else mask[..., None].to(hidden.dtype)
                off, whole = ((t.float() * keep).square().sum((1, 2)) for t in (made - wanted, wanted))
                return (off / whole.clamp_min(_NOTHING)).mul(weight).sum()

            with torch.enable_grad() if grads else torch.no_grad():
                # The mixer is run again in the backward pass, since those of all layers would be alive at once.
                again = grads and self._checkpointing
                losses.append(checkpoint(error, hidden, use_reentrant=False) if again else error(hidden))

        self._visit(inputs, visit)
        return torch.stack(losses).mean()

    @torch.no_grad()
    def calibrate(self, inputs: dict[str, Any]) -> None:
        """Multiply each mixer's scales by the one factor that brings its output nearest to the attention's.

        Least squares on a text, within 20 times up or down. Linear scores are not normalised, so a conversion may
        start many times too large; the optimizer would spend its first steps on that alone.

        Args:
            inputs: as for the model. Mixers under `relative_scales`; those without scales stay as they are.
        """

        def visit(mixer: Any, hidden: Tensor, given: dict[str, Any], wanted: Tensor) -> None:
            if mixer.scale is not None:
                made, _ = mixer(hidden, **given)
                factor = (made * wanted).float().sum() / made.float().square().sum().clamp_min(_NOTHING)
                mixer.parametrizations.scale.original += factor.clamp(0.05, 20).log() / _SPEED

        self._visit(inputs, visit)

    @torch.no_grad()
    def _visit(self, inputs: dict[str, Any], visit: Callable[[Any, Tensor, dict[str, Any], Tensor], None]) -> None:
        """Run the teacher, and call with each mixer: what its attention read, how, and what that attention made."""

        def hook(module: Any, args: tuple, kwargs: dict[str, Any], output: tuple) -> None:
            hidden = (args[0] if args else kwargs["hidden_states"]).detach()
            given = {name: kwargs.get(name) for name in ("position_embeddings", "longctx_tokens")}
            visit(self.mixers[str(int(module.layer_idx))], hidden, given, output[0].detach())

        with as_teacher(self.whole) as attention:
            handles = [m.register_forward_hook(hook, with_kwargs=True) for m in attention.values()]
            try:
                self.whole.get_decoder()(**inputs, use_cache=False)
            finally:
                for handle in handles:
                    handle.remove()

    def _match(self, inputs: dict[str, Any], targets: Tensor) -> Tensor:
        return token_kl(self.whole, self.read(inputs), self.read_as_teacher(inputs), targets)

    def _text(self, inputs: dict[str, Any], targets: Tensor) -> Tensor:
        return _over_tiles(self.whole, _cross_entropy, targets, self.read(inputs))

    # -- readings

    def read(self, inputs: dict[str, Any]) -> Tensor:
        """The student's last hidden states (B, L, H)."""
        with self._as_asked():
            return self.whole.get_decoder()(**inputs, use_cache=False).last_hidden_state

    @torch.no_grad()
    def read_as_teacher(self, inputs: dict[str, Any]) -> Tensor:
        """The teacher's last hidden states (B, L, H), without gradients."""
        with as_teacher(self.whole):
            return self.whole.get_decoder()(**inputs, use_cache=False).last_hidden_state

    @contextmanager
    def _as_asked(self) -> Iterator[None]:
        """Activations are checkpointed, which transformers does of layers in training mode; dropout stays off."""
        if not (self._checkpointing and torch.is_grad_enabled()):
            yield
            return
        self.whole.activation_checkpointing_enable({"use_reentrant": False})
        for module in self.whole.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.training = True
        try:
            yield
        finally:
            self.whole.eval()
            self.whole.activation_checkpointing_disable()


class _Relative(nn.Module):
    """A positive parameter as a factor on what it was."""

    base: Tensor

    def __init__(self, base: Tensor) -> None:
        super().__init__()
        self.register_buffer("base", base.detach().clone())

    def forward(self, power: Tensor) -> Tensor:
        return self.base * (_SPEED * power).exp()

    def right_inverse(self, value: Tensor) -> Tensor:
        return (value / self.base).log() / _SPEED


@contextmanager
def relative_scales(mixers: Iterable[nn.Module]) -> Iterator[None]:
    """Let an optimizer's step change the scales of mixers by a share of themselves, for as long as the context lasts.

    They start between 1e-4 and 1e-2: a step of Adam of 1e-3 would throw them about, and their gradients would be
    nearly all of the norm that is clipped.

    Args:
        mixers: the mixers; those of the classic form have no scales, and stay as they are.
    """
    scaled = [mixer for mixer in mixers if mixer.scale is not None]
    for mixer in scaled:
        parametrize.register_parametrization(mixer, "scale", _Relative(mixer.scale))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for mixer in scaled:
            parametrize.remove_parametrizations(mixer, "scale", leave_parametrized=True)


def next_tokens(ids: Tensor, mask: Tensor | None, labels: Tensor | None) -> Tensor:
    """What is to be predicted at each place: the next token, `IGNORED` where there is none or it is no target.

    Args:
        ids: (B, L).
        mask: (B, L), 0 for padding, or None.
        labels: (B, L) not shifted, or None for all tokens.

    >>> next_tokens(torch.tensor([[0, 5, 6, 7]]), torch.tensor([[0, 1, 1, 1]]), None)
    tensor([[-100,    6,    7, -100]])
    """
    wanted = ids if labels is None else labels
    if mask is not None:
        before = nn.functional.pad(mask[..., :-1], (1, 0))  # padding predicts nothing either
        wanted = wanted.masked_fill((mask == 0) | (before == 0), IGNORED)
    return nn.functional.pad(wanted[..., 1:], (0, 1), value=IGNORED)


def token_kl(model: Any, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    """KL(teacher || student) of next-token probabilities (Hinton et al. 2015, arXiv 1503.02531), a mean over tokens.

    Logits exist for a tile of rows at a time, and are made again in the backward pass.

    Args:
        model: whose head makes logits of hidden states.
        student: (B, L, H), the student's last hidden states.
        teacher: (B, L, H), the teacher's.
        targets: (B, L), `IGNORED` where nothing counts, such as at padding.

    Returns:
        A float32 scalar in nats, 0 where nothing counts.
    """
    return _over_tiles(model, _kl, targets, student, teacher)


def _over_tiles(model: Any, tile_loss: Callable[..., Tensor], targets: Tensor, *states: Tensor) -> Tensor:
    """A mean over the tokens that count of what a tile's rows sum to."""
    keep = targets.ne(IGNORED)
    wanted, rows = targets[keep], [one[keep] for one in states]
    size = max(1, TILE_BYTES // (4 * len(rows) * model.get_output_embeddings().weight.shape[0]))
    total = torch.zeros((), dtype=torch.float32, device=targets.device)
    for start in range(0, len(wanted), size):
        tile = [one[start : start + size] for one in (wanted, *rows)]
        if torch.is_grad_enabled():
            total = total + checkpoint(tile_loss, model, *tile, use_reentrant=False)
        else:
            total = total + tile_loss(model, *tile)
    return total / max(1, len(wanted))


def log_probabilities(model: Any, hidden: Tensor) -> Tensor:
    """Float32 log-probabilities (rows, V) of hidden states (rows, H), by the model's own head."""
    return head(model, hidden[None])[0].float().log_softmax(-1)


def kl_of_rows(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) in nats of each row of log-probabilities (rows, V)."""
    return (teacher.exp() * (teacher - student)).sum(-1)


def _kl(model: Any, targets: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
    with torch.no_grad():
        wanted = log_probabilities(model, teacher)
    return kl_of_rows(wanted, log_probabilities(model, student)).sum()


def _cross_entropy(model: Any, targets: Tensor, student: Tensor) -> Tensor:
    return nn.functional.nll_loss(log_probabilities(model, student), targets, reduction="sum")


@torch.no_grad()
def compare(student: Student, rows: list[list[int]]) -> dict[str, float]:
    """Teacher and student on the same text.

    Args:
        student: of a model converted in memory.
        rows: token ids, a list each; every token but a row's first is predicted.

    Returns:
        `tokens` (predicted), `stock_perplexity`, `perplexity`, `kl` (mean of KL(stock || student) in nats), `same`
        (share of tokens whose likeliest prediction is stock's).
    """
    model, found = student.whole, []
    for row in rows:
        ids = torch.tensor([row], device=model.device)
        teacher, own = (read({"input_ids": ids})[0, :-1] for read in (student.read_as_teacher, student.read))
        size = max(1, TILE_BYTES // (8 * model.get_output_embeddings().weight.shape[0]))
        for start in range(0, len(own), size):
            tile = slice(start, start + size)
            targets = ids[0, 1:][tile, None]
            stock, said = (log_probabilities(model, hidden[tile]) for hidden in (teacher, own))
            same = (stock.argmax(-1) == said.argmax(-1)).float()
            parts = (-stock.gather(1, targets)[:, 0], -said.gather(1, targets)[:, 0], kl_of_rows(stock, said), same)
            found.append(torch.stack(parts).double().cpu())
    means = torch.cat(found, 1)
    stock_loss, loss, kl, agreed = means.mean(1).clamp_max(700).tolist()
    perplexities = torch.tensor([stock_loss, loss], dtype=torch.float64).exp().tolist()
    return {
        "tokens": means.shape[1],
        "stock_perplexity": perplexities[0],
        "perplexity": perplexities[1],
        "kl": max(kl, 0.0),
        "same": agreed,
    }
