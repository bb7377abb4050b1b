"""How attention under a pattern is computed."""

from hf_longctx.attention.attend import attend
from hf_longctx.attention.backends import BACKENDS, check_backend, check_backend_name, choose

__all__ = ["BACKENDS", "attend", "check_backend", "check_backend_name", "choose"]
