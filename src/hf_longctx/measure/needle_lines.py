"""How a needle run goes: a line on stderr each time a length is done."""

from __future__ import annotations

import sys
from typing import Any

from .controls import NO_NEEDLE, control_of, is_control, kind_of


class NeedleLines:
    """Takes each new row; the first result appears long before the last.

    Args:
        trials: of the run; with several, lines say which.
    """

    def __init__(self, trials: int) -> None:
        self._trials = trials
        self._rows: list[dict[str, Any]] = []

    def __call__(self, row: dict[str, Any]) -> None:
        """Take a row; print if it is the last of its length."""
        from tqdm import tqdm

        self._rows.append(row)
        if row["kind"] != kind_of(NO_NEEDLE):  # the last of its length
            return
        cell = ("variant", "trial", "length")
        rows = [one for one in self._rows if all(one[key] == row[key] for key in cell)]
        self._rows = [one for one in self._rows if one not in rows]
        found = [one for one in rows if not is_control(one)]
        controls = ", ".join(f"{control_of(one)} {one['outcome']}" for one in rows if is_control(one))
        marks = "".join({"hit": "+", "miss": "-"}.get(one["outcome"], "?") for one in found)
        asked = [one for one in found if one["outcome"] != "invalid"]
        why = sorted({one["reason"] for one in found if one["outcome"] == "invalid"})
        trial = f" trial {row['trial'] + 1}" if self._trials > 1 else ""
        hits, seconds = marks.count("+"), sum(one["seconds"] for one in rows)
        tqdm.write(
            f"{row['variant']:<12} {row['length']:>8,} tokens{trial}  {marks}  {hits}/{len(asked)} found, "
            f"controls: {controls}, {seconds:.0f} s" + "".join(f"; ? is invalid: {reason}" for reason in why),
            file=sys.stderr,
        )
