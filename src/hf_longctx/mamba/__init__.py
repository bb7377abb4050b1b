"""Mamba: state-space scans, usable without any model, and the plan of a conversion."""

from hf_longctx.mamba.mamba2 import INITS, Mamba2, parse
from hf_longctx.mamba.selective_scan import selective_scan
from hf_longctx.mamba.ssd import BACKENDS, ssd, ssd_step

__all__ = ["BACKENDS", "INITS", "Mamba2", "parse", "selective_scan", "ssd", "ssd_step"]
