"""A fresh process that imports modules of the package below its root, which would import transformers: 5 seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import hf_longctx

_ROOT = """
import sys, types
sys.modules["hf_longctx"] = types.ModuleType("hf_longctx")
sys.modules["hf_longctx"].__path__ = [sys.argv.pop(1)]
"""


def run(script: str, *arguments: object, package: Path = Path(hf_longctx.__file__).parent) -> list[str]:
    """The lines that a script prints, which finds the package in the given folder."""
    command = [sys.executable, "-c", _ROOT + script, str(package), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
