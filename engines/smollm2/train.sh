#!/usr/bin/env bash
# Train the guard smollm2 from labelled text: engines/smollm2/train.sh DATA.jsonl...
# Its first 22 blocks know most; the others are not computed.
export MAX_ROWS="800 diasafety=4500 multilingual=2000 toxic_statements=1600"
export CASED=1 DISGUISED=1 BEHIND=1 MAX_LAYER=22 TRIALS=1 MEMBERS=2 SPAN_ROWS=60
exec "$(dirname "$0")/../train.sh" smollm2 smollm2 HuggingFaceTB/SmolLM2-135M-Instruct "$@"
