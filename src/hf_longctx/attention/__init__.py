"""How attention under a pattern is computed."""

from hf_longctx.attention.attend import BACKENDS, attend, check_backend, check_backend_name, choose

__all__ = ["BACKENDS", "attend", "check_backend", "check_backend_name", "choose"]
