"""`Mamba2`: which attention layers become Mamba-2 layers, and from what they start. Data and its text form."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields

from hf_longctx.patterns.layers import ATTENTION_KINDS, SELECTOR, select

INITS = ("attention", "mamba-in-llama", "random")
#: Tokens that the slowest head remembers by default, and the widest memory there may be.
MEMORY, LONGEST = 1024, 1 << 24


@dataclass(frozen=True)
class Mamba2:
    """Layers of a model that become Mamba-2 layers (Dao and Gu 2024, arXiv 2405.21060).

    Args:
        layers: which: an index, a slice, a layer type, or several joined by commas, as in `Layers`.
        init: what they start from. `attention` is causal linear attention with the layer's own weights, decayed by
            head; nothing else of Mamba acts yet, and all of it can be learned. `mamba-in-llama` copies the projections
            into a Mamba-2 block and draws the rest as Mamba-2 does (arXiv 2408.15237). `random` draws all.
        rope: whether keys and queries (B and C) are rotated as before. None: for `attention` yes, else no.
        memory: with `attention`, the tokens after which the slowest head has kept 1/e of a token; the other heads'
            are spread between its square root and it, equal in ratio.
        conv: taps of the convolution before the scan, at least 2.
        seed: of what is drawn at random.

    Raises:
        TypeError: a field of the wrong type.
        ValueError: a field out of range, or one that its `init` has no use for.

    >>> str(Mamba2("1::4", init="random")), parse("1::4,init=random") == Mamba2("1::4", "random")
    ('1::4,init=random', True)
    """

    layers: str
    init: str = "attention"
    rope: bool | None = None
    memory: int = MEMORY
    conv: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.layers, bool) or not isinstance(self.layers, str | int):
            raise TypeError(f"Mamba2.layers is {self.layers!r}: it must be a selector such as '1::4' or '0,3'")
        selector = str(self.layers).replace(" ", "")
        if not re.fullmatch(SELECTOR, selector):
            raise ValueError(f"Mamba2.layers is {self.layers!r}: it must be indices, slices or layer types, as '1::4'")
        object.__setattr__(self, "layers", selector)
        if self.init not in INITS:
            near = difflib.get_close_matches(str(self.init), INITS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"Mamba2.init is {self.init!r}: {hint}it must be one of {', '.join(INITS)}")
        if self.rope is not None and not isinstance(self.rope, bool):
            raise TypeError(f"Mamba2.rope is {self.rope!r}: it must be True, False or None")
        for name, least, most in (("memory", 1, LONGEST), ("conv", 2, 64), ("seed", 0, 1 << 31)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"Mamba2.{name} is {value!r}: it must be a whole number from {least} to {most}")
            if not least <= value <= most:
                raise ValueError(f"Mamba2.{name} is {value}: it must be from {least} to {most}")
        if self.init == "attention" and self.seed:
            raise ValueError(f"Mamba2.seed is {self.seed}: init 'attention' draws nothing at random; leave seed out")
        if self.init != "attention" and self.memory != MEMORY:
            raise ValueError(f"Mamba2.memory is {self.memory}: init {self.init!r} draws its own decay; leave it out")

    @property
    def rotates(self) -> bool:
        """Whether B and C are rotated."""
        return self.init == "attention" if self.rope is None else self.rope

    @property
    def classic(self) -> bool:
        """Whether the layer is built as Mamba-2 was published, rather than as linear attention with its additions."""
        return self.init != "attention"

    def select(self, kinds: Sequence[str]) -> tuple[int, ...]:
        """The layers to convert.

        Args:
            kinds: the layer type of each layer of the model.

        Raises:
            ValueError: none, one without attention, or all attention layers, of which one must stay.

        >>> Mamba2("1::4").select(("full_attention",) * 8)
        (1, 5)
        """
        chosen = tuple(select(self.layers, len(kinds), kinds))
        for index in chosen:
            if kinds[index] not in ATTENTION_KINDS:
                raise ValueError(
                    f"layer {index} is of type {kinds[index]!r}, which is no attention layer to convert: name layers "
                    f"of types {', '.join(ATTENTION_KINDS)} in mamba={str(self)!r}"
                )
        if not any(kind in ATTENTION_KINDS for i, kind in enumerate(kinds) if i not in chosen):
            raise ValueError(
                f"mamba={str(self)!r} leaves no attention layer among {len(kinds)}: at least one must stay, to recall "
                "and to count positions; name fewer layers, such as '1::4'"
            )
        return chosen

    def __str__(self) -> str:
        options = [
            f"{f.name}={str(value).lower() if isinstance(value, bool) else value}"
            for f in fields(self)
            if f.default is not MISSING and (value := getattr(self, f.name)) != f.default
        ]
        return ",".join([self.layers, *options])


def parse(text: str | Mamba2) -> Mamba2:
    """Read the text form that `str` writes: a layer selector, then options as `name=value`, joined by commas.

    Raises:
        TypeError: neither text nor a `Mamba2`.
        ValueError: an unknown option or one given twice, a value that cannot be read, or one that `Mamba2` refuses.

    >>> parse("0,3,init=random,seed=7")
    Mamba2(layers='0,3', init='random', rope=None, memory=1024, conv=4, seed=7)
    """
    if isinstance(text, Mamba2):
        return text
    if not isinstance(text, str):
        raise TypeError(f"mamba is {text!r}: give Mamba2(layers='1::4'), or its text such as '1::4'")
    layers: list[str] = []
    options: dict[str, object] = {}
    kinds = {f.name: f for f in fields(Mamba2) if f.name != "layers"}
    for part in "".join(text.split()).split(","):
        name, equals, value = part.partition("=")
        if not equals and not options:
            layers.append(part)
            continue
        if name not in kinds or not equals:
            near = difflib.get_close_matches(name, kinds, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"mamba {text!r}: cannot read {part!r}; {hint}write SELECTOR,OPTION=VALUE, with the options "
                f"{', '.join(kinds)}, such as '1::4,init=random'"
            )
        if name in options:
            raise ValueError(f"mamba {text!r}: {name} is given twice; give it once")
        options[name] = _value(text, name, value)
    return Mamba2(",".join(layers), **options)  # type: ignore[arg-type]


def _value(text: str, name: str, value: str) -> object:
    if name == "init":
        return value
    if name == "rope":
        if value not in ("true", "false"):
            raise ValueError(f"mamba {text!r}: rope must be true or false, got {value!r}")
        return value == "true"
    if not re.fullmatch(r"\d{1,12}", value):
        raise ValueError(f"mamba {text!r}: {name} must be a whole number, got {value!r}")
    return int(value)
