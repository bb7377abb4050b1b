"""What every RoPE scaling has in common: factor or target, the config it exports, its text form, and the registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any, ClassVar, Self

import torch

from hf_longctx.rope import checks
from hf_longctx.rope.keys import without_scaling

_REGISTRY: dict[str, type[Scaling]] = {}


def names() -> tuple[str, ...]:
    """Name every registered method, sorted, as the text form spells it.

    >>> {"linear", "yarn", "none"} <= set(names())
    True
    """
    return tuple(sorted(_REGISTRY))


def registry() -> Mapping[str, type[Scaling]]:
    """Map each name to its class, a copy."""
    return dict(_REGISTRY)


def option(default: Any, kind: str = "number", *, text: str | None = None) -> Any:
    """Declare an option of a method: a dataclass field that is checked when built and read by `parse`.

    Args:
        default: Value when it is left out; None means "not set" and passes unchecked.
        kind: One of `checks.KINDS`.
        text: How the text form spells it; the field's name if left out.
    """
    return field(default=default, metadata={"kind": kind, "text": text})


def default_inv_freq(dim: int, base: float) -> torch.Tensor:
    """Frequencies of plain RoPE, base^(-2i/dim) for i = 0..dim/2-1 (Su et al. 2021, arXiv 2104.09864, eq. 15).

    Args:
        dim: Rotary dimension of a head, even.
        base: The `rope_theta`.

    Returns:
        (dim/2,) float64 on the CPU, radians a token.

    >>> default_inv_freq(4, 100.0)
    tensor([1.0000, 0.1000], dtype=torch.float64)
    """
    # The device is explicit: models are built under a meta device context, where this would hold no numbers.
    exponents = torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim
    return base**-exponents


@dataclass(frozen=True)
class Scaling(ABC):
    """A way to stretch a model's RoPE over more positions than it was trained on. Formulas only, no model.

    A method is a frozen dataclass below this class with a `name` and `frequencies`; defining it registers it. Without
    a rope type of its own it is exported as `longrope` with equal short and long lists, which holds any frequencies.

    Attributes:
        factor: How many times the trained length the new window is, at least 1; None where `target` is given.
        target: The new window in tokens instead; `resolve` turns it into a factor.

    Raises:
        TypeError: If a field has the wrong type.
        ValueError: If a field is out of range, or not exactly one of factor and target is given.

    >>> from hf_longctx.rope import YaRN
    >>> YaRN(4) == YaRN.to(32768).resolve(trained=8192)
    True
    """

    name: ClassVar[str]
    length_dependent: ClassVar[bool] = False
    """True where frequencies depend on the length at hand, so that one set must be held per sequence."""

    factor: float | None = None
    target: int | None = field(default=None, kw_only=True)

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Register a class that has a name of its own."""
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            return
        known = _REGISTRY.get(cls.name)
        # The same definition run again (a notebook cell, a reload) replaces itself.
        if known and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"RoPE scaling name {cls.name!r} is taken by {known.__qualname__}; give {cls!r} another")
        _REGISTRY[cls.name] = cls

    def __post_init__(self) -> None:
        self._check_extent()
        for spec in self.options():
            value = getattr(self, spec.name)
            if value is not None or spec.default is not None:
                self._set(spec.name, checks.KINDS[spec.metadata.get("kind", "number")](self._owner, spec.name, value))

    def _check_extent(self) -> None:
        if not self.extents():
            return
        if (self.factor is None) == (self.target is None):
            given = "neither" if self.factor is None else f"factor={self.factor!r} and target={self.target!r}"
            raise ValueError(
                f"{self._owner}: give exactly one of factor and target, got {given}; "
                f"write {self._owner}(factor=4), or {self._owner}.to(32768) for a window in tokens"
            )
        if self.factor is not None:
            self._set("factor", checks.factor(self._owner, "factor", self.factor))
        if self.target is not None:
            self._set("target", checks.size(self._owner, "target", self.target))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def _owner(self) -> str:
        return type(self).__name__

    @classmethod
    def options(cls) -> tuple[Field[Any], ...]:
        """List the dataclass fields besides factor and target."""
        return tuple(f for f in fields(cls) if f.name not in ("factor", "target"))

    @classmethod
    def extents(cls) -> frozenset[str]:
        """Tell which of factor and target the method takes."""
        return frozenset(f.name for f in fields(cls) if f.init and f.name in ("factor", "target"))

    @classmethod
    def to(cls, length: int, **options: Any) -> Self:
        """Aim for a window of `length` tokens instead of giving a factor.

        Args:
            length: The window wanted, in tokens.
            **options: The method's other fields.

        Raises:
            TypeError: If the length is no integer.
            ValueError: If it is below 1, or the method has no target (`DynamicNTK`, `NoScaling`).
        """
        if "target" not in cls.extents():
            why = "follows every length by itself" if cls.length_dependent else "stretches nothing"
            raise ValueError(f"{cls.__name__} {why} and takes no target, got {length!r}; write {cls.__name__}()")
        return cls(target=length, **options)

    def resolve(self, trained: int) -> Self:
        """Turn a target into a factor; one that has a factor is returned as it is.

        Args:
            trained: Length the model was trained on, in tokens.

        Raises:
            ValueError: If the target is below the trained length.
        """
        trained = checks.size(self._owner, "trained", trained)
        if self.target is None:
            return self
        if self.target < trained:
            raise ValueError(
                f"{self._owner}: target {self.target} is below the trained length {trained}, and a scaling only "
                f"extends; give at least {trained}"
            )
        return replace(self, factor=self.target / trained, target=None)

    def scale(self, trained: int) -> float:
        """Return the factor, resolved; 1 where the method has none."""
        factor = self.resolve(trained).factor
        return 1.0 if factor is None else factor

    def inv_freq(self, dim: int, base: float, trained: int, length: int | None = None) -> torch.Tensor:
        """Compute the scaled frequencies.

        Args:
            dim: Rotary dimension of a head, even.
            base: The unscaled `rope_theta`.
            trained: Length the model was trained on, in tokens.
            length: Length of the sequence at hand, for methods that are `length_dependent`; None stands for `trained`.

        Returns:
            (dim/2,) float64 on the CPU, radians a token.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If an argument is out of range or does not fit the method.

        >>> from hf_longctx.rope import Linear
        >>> Linear(2).inv_freq(4, 100.0, 1024)
        tensor([0.5000, 0.0500], dtype=torch.float64)
        """
        dim, base, trained = checks.rotary(self._owner, dim, base, trained)
        length = trained if length is None else checks.size(self._owner, "length", length)
        return self.frequencies(dim, base, trained, length)

    @abstractmethod
    def frequencies(self, dim: int, base: float, trained: int, length: int) -> torch.Tensor:
        """Compute what `inv_freq` returns, from arguments already checked: the one thing a method must define."""

    def attention_scaling(self, trained: int) -> float:
        """Return the number that multiplies both cos and sin (so attention logits gain its square)."""
        checks.size(self._owner, "trained", trained)
        return 1.0

    def max_positions(self, trained: int, current: int) -> int:
        """Return the `max_position_embeddings` to write beside `parameters`.

        Args:
            trained: Length the model was trained on, in tokens.
            current: The config's present value.
        """
        return round(checks.size(self._owner, "trained", trained) * self.scale(trained))

    def parameters(self, current: Mapping[str, Any], *, dim: int, trained: int) -> dict[str, Any]:
        """Write the method as the `rope_parameters` of a transformers config, merged over what it has.

        Args:
            current: The config's flat `rope_parameters` (one layer type's entry where they are nested). Its keys are
                kept (rope_theta, partial_rotary_factor, ...), save those of an earlier scaling.
            dim: Rotary dimension of a head.
            trained: Length the model was trained on, in tokens.

        Returns:
            A new dict, of JSON types where `current` is.

        Raises:
            ValueError: If `current` has no rope_theta or a rope type that is no scaled plain RoPE, or `dim` does not
                fit.

        >>> from hf_longctx.rope import YaRN
        >>> YaRN(2).parameters({"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4}, dim=64, trained=8192)
        {'rope_theta': 10000.0, 'rope_type': 'yarn', 'factor': 2.0, 'original_max_position_embeddings': 8192}
        """
        kept = without_scaling(self._owner, current)
        self.inv_freq(dim, kept["rope_theta"], trained)
        return kept | self.resolve(trained).export(kept["rope_theta"], dim, trained)

    def export(self, base: float, dim: int, trained: int) -> dict[str, Any]:
        """Give the keys that the method writes over the kept ones; called resolved, with arguments already checked."""
        return self._export_longrope(base, dim, trained)

    def as_longrope(self, current: Mapping[str, Any], *, dim: int, trained: int) -> dict[str, Any]:
        """Write the same frequencies as rope type `longrope`, for config classes that accept no other (Phi-3).

        Each entry of both lists is the unscaled frequency over the scaled one. Arguments and errors are those of
        `parameters`; besides, ValueError where frequencies depend on the length, which equal lists cannot hold.
        """
        kept = without_scaling(self._owner, current)
        self.inv_freq(dim, kept["rope_theta"], trained)
        return kept | self.resolve(trained)._export_longrope(kept["rope_theta"], dim, trained)

    def _export_longrope(self, base: float, dim: int, trained: int) -> dict[str, Any]:
        if self.length_dependent:
            raise ValueError(
                f"{self._owner} changes its frequencies with the length, which rope type 'longrope' cannot hold; "
                "choose a fixed method such as YaRN, NTK or Linear for this model"
            )
        ratios = (default_inv_freq(dim, base) / self.inv_freq(dim, base, trained)).tolist()
        return {
            "rope_type": "longrope",
            "factor": self.scale(trained),
            "original_max_position_embeddings": trained,
            "short_factor": ratios,
            "long_factor": list(ratios),
            "attention_factor": self.attention_scaling(trained),
        }

    def __str__(self) -> str:
        parts = []
        if self.factor is not None:
            parts.append(text_of(self.factor))
        if self.target is not None:
            parts.append(f"to={self.target}")
        for spec in self.options():
            value = getattr(self, spec.name)
            if value != spec.default:
                parts.append(f"{text_name(spec)}={text_of(value)}")
        return f"{self.name}:{','.join(parts)}" if parts else self.name


def text_name(spec: Field[Any]) -> str:
    """Return how the text form spells a field."""
    return spec.metadata.get("text") or spec.name


def text_of(value: object) -> str:
    """Spell a field's value so that it reads back exactly: whole numbers without a point, others by repr.

    >>> text_of(4.0), text_of(1.5), text_of(False), text_of((1.0, 1.02))
    ('4', '1.5', 'false', '1/1.02')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "/".join(map(text_of, value))
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e16:
        return str(int(value))
    return repr(value)
