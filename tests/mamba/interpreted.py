"""Compares `kernels` with the torch path in triton's interpreter, on a CPU. Run by test_kernels.py in its own process,
with TRITON_INTERPRET=1.

mamba_ssm's Python files are enough (its package needs compiled parts, so its `__init__` is passed over). The
interpreter cannot tell which configuration is fastest, so each kernel gets its first, and a CUDA device is made up.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import types

import torch

from hf_longctx.mamba import kernels, ssd, ssd_step
from scan_cases import arguments


class First:
    """A kernel with the first of its configurations."""

    def __init__(self, kernel, config):
        self.kernel, self.best_config, self.configs = kernel, config, [config]

    def __getitem__(self, grid):
        def run(*args, **kwargs):
            named = dict(zip(self.kernel.arg_names, args)) | kwargs
            if self.best_config.pre_hook is not None:
                self.best_config.pre_hook(named)
            sizes = self.best_config.kwargs
            chosen = grid({**kwargs, **sizes}) if callable(grid) else grid
            return self.kernel[chosen](*args, **kwargs, **sizes)

        return run


def compare(of: dict[str, torch.Tensor]) -> None:
    """Forward, backward and one step, plain and packed."""
    heads = of["x"].shape[2]
    D, initial = torch.randn(heads, requires_grad=True), torch.randn(2, heads, 16, 16, requires_grad=True)
    inputs = [*of.values(), D, initial]
    packed = torch.arange(40).div(13).to(torch.int32).repeat(2, 1)
    for documents in (None, packed):
        got = kernels.scan(*of.values(), D, initial, documents, 16)
        expected = ssd(**of, D=D, initial_state=initial, segments=documents, return_final_state=True)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
        weights = [torch.randn_like(t) for t in expected]
        both = [torch.autograd.grad(sum((a * w).sum() for a, w in zip(r, weights)), inputs) for r in (got, expected)]
        torch.testing.assert_close(*both, atol=1e-3, rtol=1e-3)
    with torch.no_grad():
        x, dt, A, B, C = (t if t.dim() == 1 else t[:, 0] for t in of.values())
        state = got[1].detach()  # as it comes, for the kernel changes it in place
        other = state.clone()
        for skip in (D, None):
            y = kernels.step(state, x, dt, A, B, C, skip)
            expected = ssd_step(other, x, dt, A, B, C, D=skip)
            torch.testing.assert_close((y, state), (expected, other), atol=1e-4, rtol=1e-4)


def main() -> None:
    """One reader of each state, and several: grouped queries."""
    import triton

    package = types.ModuleType("mamba_ssm")
    package.__path__ = list(importlib.util.find_spec("mamba_ssm").submodule_search_locations)
    sys.modules["mamba_ssm"] = package
    triton.autotune = lambda configs, key, **_: lambda kernel: First(kernel, configs[0])
    torch.cuda.device = lambda index: contextlib.nullcontext()
    torch.cuda.get_device_properties = lambda device: types.SimpleNamespace(multi_processor_count=1)

    for heads, groups, readers in ((4, 2, 1), (2, 2, 3)):
        of = arguments(2, 40, heads=heads, size=16, groups=groups, readers=readers)
        compare({k: t.requires_grad_() for k, t in of.items()})
    print("equal")


if __name__ == "__main__":
    main()
