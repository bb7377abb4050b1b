"""Which probes of a trial share one reading, and how many tokens each costs then."""

from __future__ import annotations

from collections.abc import Sequence

from .grid import Probe


def group(probes: Sequence[Probe], *, exact: bool, per_length: bool) -> list[list[Probe]]:
    """Split probes into groups that share one reading.

    Args:
        probes: of one trial.
        exact: True to share nothing.
        per_length: True where what was read at one length cannot be read on to the next: one needle a context, or
            a cache that is no prefix of the longer one.

    Returns:
        Groups, each by ascending place. Probes that cannot be asked are left out.
    """
    usable = [probe for probe in probes if probe.reason is None]
    if exact:
        return [[probe] for probe in usable]
    groups: dict[int, list[Probe]] = {}
    for probe in usable:
        groups.setdefault(probe.length if per_length else 0, []).append(probe)
    return list(groups.values())


def spent_tokens(groups: Sequence[Sequence[Probe]]) -> dict[tuple[int, float | None, str], int]:
    """Tokens read for each probe: those that no probe before it in its group has read.

    Args:
        groups: from `group`.

    Returns:
        (length, depth, kind) to tokens, the question included; decoded answers are not.
    """
    spent: dict[tuple[int, float | None, str], int] = {}
    for members in groups:
        read = 0
        for probe in members:
            spent[probe.length, probe.depth, probe.kind] = probe.at - read + len(probe.rest)
            read = probe.at
    return spent
