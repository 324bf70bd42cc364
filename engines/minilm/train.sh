#!/usr/bin/env bash
# Train the guard minilm from labelled text: engines/minilm/train.sh DATA.jsonl...
export MEMBERS=3 TRIALS=2 MAX_ROWS=3000 NOISE_ROWS=300 BEHIND=1 SPAN_ROWS=60 SPAN_SIZES=64
exec "$(dirname "$0")/../train.sh" minilm minilm sentence-transformers/all-MiniLM-L6-v2 "$@"
