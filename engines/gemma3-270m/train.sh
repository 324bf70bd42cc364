#!/usr/bin/env bash
# Train the guard gemma3-270m from labelled text: engines/gemma3-270m/train.sh DATA.jsonl...
# Of its 18 blocks the head reads the first 12; the others are not computed.
export MAX_ROWS="800 diasafety=3000 multilingual=2000 toxic_statements=1600"
export CASED=1 BEHIND=1 MAX_LAYER=12 TRIALS=1 MEMBERS=2 SPAN_ROWS=60
exec "$(dirname "$0")/../train.sh" gemma3-270m gemma3-270m google/gemma-3-270m "$@"
