"""What a run ran on: versions, hardware, memory."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers.

    Returns:
        Package name to version; a package that is not installed is left out.

    >>> "python" in versions()
    True
    """
    found = {"python": platform.python_version()}
    for package in ("torch", "transformers", "tokenizers", "hf_longctx"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """The machine in a few words.

    Returns:
        `cpu` (model name), `cores` (usable ones), `memory_bytes`, and `cuda` (device name or None).

    >>> hardware()["cores"] >= 1
    True
    """
    import torch

    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1),
        "memory_bytes": _memory("MemTotal"),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def origin(command: str | None) -> dict[str, Any]:
    """How, on what and when a run was started.

    Args:
        command: what started it.

    Returns:
        `command`, `versions`, `hardware` and `started` (UTC, ISO 8601).

    >>> sorted(origin("hf-longctx needle demo"))
    ['command', 'hardware', 'started', 'versions']
    """
    return {
        "command": command,
        "versions": versions(),
        "hardware": hardware(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def free_memory(device: str) -> int | None:
    """Bytes that are free for a cache on a device.

    Args:
        device: a torch device in text form.

    Returns:
        Bytes, or None where the system does not tell.
    """
    import torch

    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    return _memory("MemAvailable")


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory(field: str) -> int | None:
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    for line in meminfo.read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return None
