"""Reading a YAML file of settings: strictly, so that a slip of the pen is a sentence and never a default."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Args:
        path: the file.

    Returns:
        Its keys and values, as PyYAML's safe loader gives them.

    Raises:
        ModuleNotFoundError: PyYAML is not installed.
        ValueError: no such file, no YAML, a key given twice, or no mapping of texts.
    """
    try:
        import yaml
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f'{path} is read by PyYAML: pip install "hf_longctx[eval]"') from None
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} cannot be read ({getattr(error, 'strerror', None) or error})") from error
    try:
        _refuse_twice(yaml.compose(text, Loader=yaml.SafeLoader), path, yaml)
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        told = " ".join(str(error).split())
        raise ValueError(f"{path} is no YAML: {told}") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ValueError(f"{path} must hold names with values, one a line, such as lengths: 1k,2k")
    return found


def unknown(key: str, allowed: Iterable[str], where: str) -> ValueError:
    """The error about a key that does not exist, with the nearest that does.

    Args:
        key: what was given.
        allowed: what exists.
        where: what was read, as the beginning of a sentence.

    Returns:
        To be raised.

    >>> str(unknown("lenghts", ["lengths", "seed"], "smoke.yaml"))
    "smoke.yaml: unknown key 'lenghts'. Did you mean 'lengths'? Allowed are lengths, seed"
    """
    names = sorted(allowed)
    near = difflib.get_close_matches(key, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ValueError(f"{where}: unknown key {key!r}.{hint} Allowed are {', '.join(names)}")


def _refuse_twice(node: Any, path: Path, yaml: Any) -> None:
    """YAML forbids a key twice, and PyYAML silently keeps the last."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                raise ValueError(f"{path}, line {key.start_mark.line + 1}: {key.value!r} is given twice: keep one")
            seen.add(key.value)
            _refuse_twice(value, path, yaml)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_twice(value, path, yaml)
