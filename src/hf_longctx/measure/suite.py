"""A suite: models x parts (recall, effective length, tasks, cost) in one folder, from a YAML file.

```yaml
name: smoke
model: demo
variant:
  - "yarn2: rope=yarn:2"
parts:
  needle: {lengths: "512,1k", depths: 2}
  short: {kind: effective, task: niah_single_1, lengths: "512,1k", trials: 4}
  cost: {lengths: 512}
```

Keys are the option names of the commands `needle`, `effective` and `cost`, and values what these take. What stands
above `parts` holds for every part that has the option. `tasks` is `effective --fixed`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .environment import origin
from .settings_file import read_yaml, unknown
from .store import SCHEMA, write_json

KINDS = {"needle": "needle", "effective": "tasks", "tasks": "tasks", "cost": "cost"}
"""Kind of a part in the file to kind of its folder in `suite.json`."""

_MAY_CHANGE = {
    "variant", "attention", "rope", "mamba", "no-stock", "no-standard", "trials", "budget", "bisections", "confidence",
    "task", "timeout", "memory", "retry",
}  # fmt: skip
"""Options that a run's folder may gain by, or that change no row; `lengths` too, except for needles."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Part:
    """One command of a suite.

    Attributes:
        name: unique in the suite; names its folder.
        kind: one of `KINDS`.
        options: of the command, by option name, as YAML gives them.
    """

    name: str
    kind: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Suite:
    """What `hf-longctx eval` runs.

    Attributes:
        name: of the suite.
        models: hub ids, local folders or `demo`; every part runs on each.
        parts: in the order they run.
    """

    name: str
    models: tuple[str, ...]
    parts: tuple[Part, ...]

    def override(self, keys: Mapping[str, Collection[str]], **options: Any) -> Suite:
        """The suite with other models or options.

        Args:
            keys: kind to the option names that it has.
            **options: `model` takes the place of the models; others of that option in every part that has it. What
                is None or empty changes nothing.

        Returns:
            A new suite.
        """
        given = {name: value for name, value in options.items() if value not in (None, [], ())}
        models = tuple(given.pop("model", self.models))
        parts = [
            replace(part, options={**part.options, **{n: v for n, v in given.items() if n in keys[part.kind]}})
            for part in self.parts
        ]
        return replace(self, models=models, parts=tuple(parts))

    def folders(self) -> dict[tuple[str, str], str]:
        """Where each part of each model goes.

        Returns:
            (model, part's name) to its folder in the run, which is also the name of the part in `suite.json`.

        Raises:
            ValueError: two models whose folders would have the same name.

        >>> suite = Suite("s", ("demo", "org/model"), (Part("needle", "needle", {}),))
        >>> list(suite.folders().values())
        ['demo/needle', 'org-model/needle']
        >>> list(Suite("s", ("demo",), suite.parts).folders().values())
        ['needle']
        """
        slugs = {model: re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-.") or "model" for model in self.models}
        if len(set(slugs.values())) < len(slugs):
            raise ValueError(f"model: {', '.join(self.models)} differ in nothing that a folder's name can show")
        alone = len(self.models) == 1
        return {
            (model, part.name): part.name if alone else f"{slugs[model]}/{part.name}"
            for model in self.models
            for part in self.parts
        }


def read_suite(path: Path, keys: Mapping[str, Collection[str]]) -> Suite:
    """Read a suite; values are checked by the commands that take them.

    Args:
        path: a YAML file.
        keys: kind of a part to the option names that it has.

    Returns:
        The suite. Without `name` it has that of the file.

    Raises:
        ValueError: an unknown key, with the nearest one, or a part that is none.
        ModuleNotFoundError: PyYAML is not installed.
    """
    found = read_yaml(path)
    name, models, parts = found.pop("name", Path(path).stem), found.pop("model", None), found.pop("parts", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{path}: name is {name!r}: use up to 64 letters, digits, '.', '_' and '-'")
    if models is not None and not isinstance(models, str | list):
        raise ValueError(f"{path}: model is {models!r}: give a hub id, a local folder or demo, or a list of these")
    if not isinstance(parts, dict) or not parts:
        raise ValueError(f"{path}: parts is missing: name at least one of {', '.join(KINDS)} with its options")
    shared = {key for kind in keys.values() for key in kind} - {"model"}
    for key in found:
        if key not in shared:
            raise unknown(key, {"name", "model", "parts", *shared}, str(path))
    models = [models] if isinstance(models, str) else models or []
    for model in models:
        if not isinstance(model, str):
            raise ValueError(f"{path}: model holds {model!r}: give texts, in quotes if need be")
    return Suite(
        name,
        tuple(dict.fromkeys(models)),
        tuple(_part(part, given, found, keys, str(path)) for part, given in parts.items()),
    )


def _part(name: Any, given: Any, shared: Mapping[str, Any], keys: Mapping[str, Collection[str]], path: str) -> Part:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{path}: the part {name!r} cannot name a folder: use letters, digits, '.', '_' and '-'")
    if not isinstance(given, dict):
        raise ValueError(f"{path}: the part {name!r} is {given!r}: give its options, such as {{lengths: 1k}}")
    kind = given.get("kind", name)
    if kind not in KINDS:
        raise ValueError(f"{path}: the part {name!r} has no kind that exists: give kind, one of {', '.join(KINDS)}")
    own = {key: value for key, value in given.items() if key != "kind"}
    for key in own:
        if key not in keys[kind] or key == "model":
            raise unknown(str(key), {"kind", *keys[kind]} - {"model"}, f"{path}, part {name!r}")
    return Part(name, kind, {**{key: value for key, value in shared.items() if key in keys[kind]}, **own})


def begin(out: Path, suite: Suite, command: str) -> None:
    """Write `suite.json`, or check that the folder holds this suite.

    Args:
        out: the run's folder; made if missing.
        suite: what will run. A folder may gain parts, models, and what the commands' own folders may gain.
        command: how the user started this.

    Raises:
        ValueError: the folder holds something else, or parts that were measured in another way.
    """
    path = out / "suite.json"
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={str(out)!r} is a file: choose a folder for the run")
    if not path.is_file() and out.is_dir() and any(one.name[0] != "." for one in out.iterdir()):
        raise ValueError(f"out={str(out)!r} holds files but no suite.json: choose a new or empty folder")
    kinds = {part.name: part for part in suite.parts}
    parts = {
        folder: {
            "name": folder,
            "kind": KINDS[kinds[name].kind],
            "model": model,
            "folder": folder,
            "options": json.loads(json.dumps(dict(kinds[name].options))),
        }
        for (model, name), folder in suite.folders().items()
    }
    known = _known(out, path)
    for name, part in parts.items():
        if name in known:
            _agree(known[name], part, out)
    run = {"schema": SCHEMA, "name": suite.name, **origin(command), "parts": list((known | parts).values())}
    if path.is_file():
        run["started"] = json.loads(path.read_text(encoding="utf-8")).get("started", run["started"])
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, run)


def _known(out: Path, path: Path) -> dict[str, dict[str, Any]]:
    """The parts that a folder has already."""
    if not path.is_file():
        return {}
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        found = {part["name"]: part for part in run["parts"]}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged: choose another --out, or restore the file") from None
    if run.get("schema") != SCHEMA:
        raise ValueError(f"out={str(out)!r} was written by another version: choose another --out")
    return found


def _agree(then: Mapping[str, Any], now: Mapping[str, Any], out: Path) -> None:
    """A part goes on only as what it was; found out before a model is loaded."""
    may = _MAY_CHANGE if now["kind"] == "needle" else _MAY_CHANGE | {"lengths"}
    old = {"kind": then["kind"], "model": then["model"], **then.get("options", {})}
    new = {"kind": now["kind"], "model": now["model"], **now["options"]}
    changed = [key for key in sorted({*old, *new} - may) if old.get(key) != new.get(key)]
    if changed:
        told = ", ".join(f"{key} was {old.get(key)!r} and is now {new.get(key)!r}" for key in changed)
        raise ValueError(f"out={str(out)!r}: the part {now['name']!r} was another: {told}; choose another --out")


def summarise(out: Path, name: str, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Write `summary.json` of a suite.

    Args:
        out: the run's folder.
        name: of the suite.
        found: name of a part to its own summary, for those that have one.

    Returns:
        `{"schema", "name", "parts"}`.
    """
    summary = {"schema": SCHEMA, "name": name, "parts": dict(found)}
    write_json(out / "summary.json", summary)
    return summary


def summaries(run: Path) -> list[dict[str, Any]]:
    """The parts of a run's folder with their summaries: those of a suite, or the run itself.

    Args:
        run: the folder of a suite, finished or not, or of one command.

    Returns:
        Per part `name`, `kind`, `model` and `summary`; a part without a summary is left out.

    Raises:
        ValueError: no folder, no run in it, or a damaged file.
    """
    from .runs import recounted  # which needs numpy, and a suite is read before anything is run

    if not run.is_dir():
        raise ValueError(f"run={str(run)!r}: no such folder; give one that --out wrote")
    parts: Sequence[Mapping[str, Any]]
    if (run / "suite.json").is_file():
        parts = list(_known(run, run / "suite.json").values())
    else:
        parts = [{"name": "", "folder": "."}]
    found = []
    for part in parts:
        path = run / part["folder"] / "summary.json"
        try:
            # The rows know more than a summary that a kill left behind; results are committed without them.
            summary: Any = recounted(run / part["folder"])
            if summary is None:
                if not path.is_file():
                    continue
                summary = json.loads(path.read_text(encoding="utf-8"))
            kind = summary["settings"].get("kind", "needle")
            found.append({"name": part["name"], "kind": kind, "model": summary["model"], "summary": summary})
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{path} is damaged: run it again to have it rewritten") from None
    return found
