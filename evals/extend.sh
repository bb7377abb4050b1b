#!/bin/sh
# The bundled model from 8K to 16K on two CPU cores: an hour of one core in all, measuring before and after included.
# The folder holds the model, its card, and the needle runs; `report` sets them side by side.
set -e
out="${OUT:-runs/extended}"
hf-longctx extend demo --to 16k --rope yarn --data kjv --out "$out" --lora-plus --pose --length 2k \
    --steps "${STEPS:-16}" --batch 2 --needle 1k,2k,4k,8k,12k --save-every 4 "$@"
hf-longctx report "$out/needle-untrained" "$out/needle-trained"
