"""What a patch could touch, so that undoing it can be proved."""

from __future__ import annotations

import json


def fingerprint(model) -> dict:
    """Identities of everything that a patch could touch."""
    modules = dict(model.named_modules())
    return {
        "class": type(model),
        "modules": {name: id(m) for name, m in modules.items()},
        "forwards": {name: m.forward.__func__ for name, m in modules.items()},
        "own attributes": {name: sorted(k for k in vars(m)) for name, m in modules.items()},
        "values": {
            name: {k: v for k, v in vars(m).items() if isinstance(v, (int, float, str, bool, type(None), dict))}
            for name, m in modules.items()
            if "otary" in type(m).__name__
        },
        "hooks": {
            name: {k: len(v) for k, v in vars(m).items() if "hooks" in k and v is not None}
            for name, m in modules.items()
        },
        "tensors": {name: (id(t), t.data_ptr(), t._version) for name, t in model.state_dict(keep_vars=True).items()},
        "buffers": {name: (id(b), b._version) for name, b in model.named_buffers()},
        "config": json.dumps(model.config.to_dict(), sort_keys=True, default=str),
        "config attributes": sorted(vars(model.config)),
        "implementation": model.config._attn_implementation,
        "generation config": json.dumps(model.generation_config.to_dict(), sort_keys=True, default=str),
        "generate": vars(model).get("generate"),
    }
