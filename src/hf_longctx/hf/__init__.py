"""The only place that knows transformers' insides: patching, the registered functions, rotary modules, saving."""
