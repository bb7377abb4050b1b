"""The report page: from a run to one self-contained HTML file.

What the page shows is worked out by the `sections`; the templates escape all of it, since answers come from a model
and names from a user. The page's own script only sorts tables, and no other one may run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

from hf_longctx.measure import extension, heatmap, sections
from hf_longctx.measure.finding import cost_line, finding, verdict_line
from hf_longctx.measure.heatmap import length_label
from hf_longctx.measure.machines import Machine, machines
from hf_longctx.measure.runs import EXTENSION, Part, Run
from hf_longctx.measure.sections.control import doubted
from hf_longctx.measure.sections.words import percent

_EYEBROW = {
    "needle": "Needle in a haystack",
    "tasks": "Effective context",
    "cost": "Cost of context",
    EXTENSION: "Extended window",
}


def render(run: Run, overlay: Sequence[Mapping[str, Any]] = (), *, machine: Machine | None = None) -> str:
    """Render the page of a run.

    Args:
        run: what `runs.read` gives; parts that a young or killed run lacks are left out of the page.
        overlay: rows of `published.published` to show beside it.
        machine: whose memory is drawn beside what lengths take by formula; None takes an H100.

    Returns:
        An HTML document that needs no other file and no network.

    Raises:
        ImportError: jinja2 is not installed.
    """
    many = len(run.parts) > 1
    return fill(
        "report.html.j2",
        eyebrow=_eyebrow(run),
        heading=run.name if run.suite else run.model,
        name=run.name,
        finding="" if many else _lead(run.parts[0]),
        waiting=run.waiting,
        level=3 if many else 2,
        many=many,
        models=len({part.model for part in run.parts}),
        lead=sections.build(sections.LEAD, run, overlay),
        parts=[_part(part, overlay, many) for part in run.parts],
        tail=sections.build(sections.WALL, run, machine or machines()["h100"])
        + sections.build(sections.TAIL, run, overlay),
    )


def fill(template: str, **values: Any) -> str:
    """Fill a template of this package; all values are escaped.

    Args:
        template: file name of the template.
        **values: what it shows; the style sheet comes as `css`, the script as `script`, its hash as `script_hash`.

    Raises:
        ImportError: jinja2 is not installed.
    """
    environment = _environment()
    from markupsafe import Markup

    templates = files("hf_longctx.measure").joinpath("templates")
    css, script = (templates.joinpath(file).read_text(encoding="utf-8") for file in ("report.css", "sort.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # The style sheet and the script are ours, the only texts that are not escaped.
    ours = {"css": Markup(css), "script": Markup(script), "script_hash": f"sha256-{digest}"}
    return environment.get_template(template).render(**ours, **values)


@lru_cache
def _environment() -> Any:
    """Kept, since it compiles each template once."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise ImportError('a page needs jinja2: pip install "hf_longctx[report]"') from error
    return Environment(
        loader=PackageLoader("hf_longctx.measure", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _eyebrow(run: Run) -> str:
    first = run.parts[0].kind
    if run.suite or len(run.parts) == 1 or first == EXTENSION:
        return "Suite" if run.suite and len(run.parts) > 1 else _EYEBROW[first]
    return "Recall and cost"


def _lead(part: Part) -> str:
    """The sentence that the part begins with."""
    if part.kind == "needle":
        return finding(part.summary)
    if part.kind == EXTENSION:
        return extension.line(part.summary)
    return cost_line(part.rows) if part.kind == "cost" else ""


def _part(part: Part, overlay: Sequence[Any], many: bool) -> dict[str, Any]:
    lengths = [length_label(length) for length in part.lengths]
    haystack = part.summary.get("haystack") or {}
    return {
        "name": part.name,
        "eyebrow": _EYEBROW[part.kind],
        "model": part.model,
        "finding": _lead(part) if many else "",
        "verdicts": [verdict_line(*item) for item in part.variants.items()] if part.recall else [],
        "doubted": doubted(part),
        "unfinished": _unfinished(part),
        "variants": len(part.variants),
        "lengths": lengths,
        "asked": sum(one["n"] for entry in part.variants.values() for one in entry.get("lengths", ())),
        "unit": {"needle": "scored probes", "tasks": "scored trials"}.get(part.kind, ""),
        "haystack": str(haystack.get("label") or haystack.get("name") or ""),
        "unique_share": percent(haystack.get("unique_share")),
        "sections": sections.build(sections.PARTS, part, overlay),
    }


def _unfinished(part: Part) -> tuple[int, int] | None:
    """Cells measured of cells planned, where some are missing."""
    if part.kind != "needle":
        return None
    lengths, depths = heatmap.grid(part.summary)
    measured = sum(len(entry["cells"]) for entry in part.variants.values())
    planned = len(lengths) * len(depths) * len(part.variants)
    return (measured, planned) if measured < planned else None
