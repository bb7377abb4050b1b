"""Named patterns from the literature, as text. Each says where its numbers come from."""

from __future__ import annotations

#: name -> (text form, source). `hf_longctx.patterns.parse(name)` reads these too.
PRESETS: dict[str, tuple[str, str]] = {
    "mistral": ("window:4096", "Mistral 7B, arXiv 2310.06825: a window of 4096 in every layer"),
    "streaming": ("window:1020+global:4", "StreamingLLM, arXiv 2309.17453: 4 sinks and 1020 recent tokens"),
    "longformer": (
        "window:512+global:1",
        "Longformer, arXiv 2004.05150: window 512 and one global token, made causal",
    ),
    "bigbird": (
        "block:64,1+global:64+random:3,64,seed=0",
        "BigBird, arXiv 2007.14062: blocks of 64, one to the left, one global, 3 random, made causal",
    ),
    "sparse_transformer": (
        "fixed:128,32",
        "Sparse Transformer, arXiv 1904.10509: fixed attention as for text, stride 128 and 32 summaries, heads merged",
    ),
    "longnet": (
        "segment:2048,1+segment:4096,2+segment:8192,4+segment:16384,6+segment:32768,12",
        "LongNet, arXiv 2307.02486: its five pairs of segment and dilation as one mask. The paper weighs the five "
        "results by their softmax sums, so that a key in several counts several times; a mask shows it once",
    ),
}
