"""Mamba: state-space scans, usable without any model."""

from hf_longctx.mamba.selective_scan import selective_scan
from hf_longctx.mamba.ssd import BACKENDS, ssd, ssd_step

__all__ = ["BACKENDS", "selective_scan", "ssd", "ssd_step"]
