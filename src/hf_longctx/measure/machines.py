"""Memory of machines: a small table, and sizes in bytes as text."""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_UNITS = {"": 1} | {unit + end: 1000**i for i, unit in enumerate("kmgt", 1) for end in ("", "b")}
_UNITS |= {unit + "ib": 1024**i for i, unit in enumerate("kmgt", 1)}


@dataclass(frozen=True)
class Machine:
    """What a length has to fit.

    Attributes:
        name: in words.
        memory: bytes.
    """

    name: str
    memory: int


@lru_cache
def machines() -> dict[str, Machine]:
    """The table, by short name.

    >>> machines()["h100"]
    Machine(name='NVIDIA H100 80 GB', memory=80000000000)
    """
    data = json.loads(Path(__file__).with_name("machines.json").read_text(encoding="utf-8"))
    return {key: Machine(entry["name"], entry["bytes"]) for key, entry in data["machines"].items()}


def machine(text: str) -> Machine:
    """A machine of the table, or a size such as `24GB` (10^9 bytes each) or `24GiB` (2^30).

    Args:
        text: short name or size; case does not matter.

    Raises:
        ValueError: neither.

    >>> machine("64GiB").memory == 64 * 2**30, machine("1.5tb").memory
    (True, 1500000000000)
    """
    key = text.strip().lower().replace(" ", "")
    if key in machines():
        return machines()[key]
    return Machine(text.strip(), read_bytes(text))


def read_bytes(text: str) -> int:
    """Bytes of a size such as `500m`, `24GB` or `24GiB`: k, m, g and t are powers of 1000, with `ib` of 1024.

    Raises:
        ValueError: no size, or one below a byte.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt]?(?:i?b)?)", text.strip().lower().replace(" ", ""))
    size = int(float(match[1]) * _UNITS[match[2]]) if match and match[2] in _UNITS else 0
    if size < 1:
        near = difflib.get_close_matches(text.lower(), machines(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"memory is {text!r}: {hint}it must be one of {', '.join(machines())}, or a size such as 24GB or 24GiB"
        )
    return size
