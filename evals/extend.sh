#!/bin/sh
# The bundled model from 8K to 16K on two CPU cores, measuring before and after included; started again, it goes on
# where it stopped. The folder then holds the model, its card, and report.html: needles, perplexity by position,
# divergence from the base model, and losses of base, scaled-untrained and trained on one page.
set -e
out="${OUT:-runs/extended}"
hf-longctx extend demo --to 16k --rope yarn --data kjv --out "$out" --lora-plus --pose --length 2k \
    --steps "${STEPS:-16}" --batch 2 --needle 1k,2k,4k,8k,12k --save-every 4 "$@"
# What is committed of it: everything but the weights and the rows.
if [ -n "$KEEP" ]; then
    mkdir -p "$KEEP/needle"
    cp "$out/README.md" "$out/extend.json" "$out/report.html" "$out/heatmap.png" "$KEEP/"
    cp "$out/needle/summary.json" "$KEEP/needle/"
fi
