"""Options of a command from a YAML file: its own option names, with the values it takes on a command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer

_NOT_IN_FILES = {"config", "out", "json", "help", "fail-under"}
"""How one run is started, printed and judged, not what is measured."""


def command_of(function: Callable[..., Any]) -> Any:
    """The click command of a function that reads options; invoked, it returns what the function does.

    Args:
        function: a typer command, or one under `measuring`, which is taken off.
    """
    app = typer.Typer(add_completion=False)
    app.command()(inspect.unwrap(function))
    return typer.main.get_command(app)


def keys(command: Any) -> dict[str, Any]:
    """What a file may say for a command.

    Args:
        command: a click command.

    Returns:
        Option names without dashes, and `model`, to click's parameters.
    """
    named = {param.opts[0].lstrip("-"): param for param in command.params}
    return {name: param for name, param in named.items() if name not in _NOT_IN_FILES}


def defaults(values: Mapping[str, Any], command: Any, where: str) -> dict[str, Any]:
    """Values of a file as the defaults of a command.

    Args:
        values: by option name.
        command: a click command.
        where: what was read, as the beginning of an error.

    Returns:
        Values by parameter name, for click's `default_map`.

    Raises:
        ValueError: an unknown key, with the nearest, or a value that the option does not take.
    """
    from hf_longctx.measure.settings_file import unknown

    allowed = keys(command)
    found = {}
    for key, value in values.items():
        if key not in allowed:
            raise unknown(key, allowed, where)
        found[allowed[key].name] = _value(value, allowed[key], f"{where}: {key}")
    return found


def from_file(ctx: typer.Context, value: Path | None) -> Path | None:
    """`--config FILE`: what the file says takes the place of the command's defaults; options given count more.

    Args:
        ctx: of the command.
        value: the file.

    Returns:
        The file.

    Raises:
        ValueError: as `defaults` and `settings_file.read_yaml`.
    """
    if value is not None:
        from hf_longctx.measure.settings_file import read_yaml

        ctx.default_map = {**(ctx.default_map or {}), **defaults(read_yaml(value), ctx.command, str(value))}
    return value


def _value(value: Any, param: Any, where: str) -> Any:
    """A value of YAML as click takes it.

    Lists stand for commas, or for an option that is given several times; `name: text` for the text `name: text`.
    """
    if getattr(param, "is_flag", False):
        if not isinstance(value, bool):
            raise ValueError(f"{where} is {value!r}: it must be true or false")
        return value
    if param.multiple:
        return [_text(one, where) for one in (value if isinstance(value, list) else _split(value))]
    if isinstance(value, list):
        return ",".join(_text(one, where) for one in value)
    return _text(value, where)


def _split(value: Any) -> list[Any]:
    return [{name: text} for name, text in value.items()] if isinstance(value, dict) else [value]


def _text(value: Any, where: str) -> str:
    # `- yarn2: rope=yarn:2` without quotes is a mapping in YAML, and means what it says.
    if isinstance(value, dict) and len(value) == 1:
        ((name, text),) = value.items()
        return f"{_text(name, where)}: {_text(text, where)}"
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{where} is {value!r}: write it as on the command line, in quotes if need be")
    return str(value)
