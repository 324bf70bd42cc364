#!/usr/bin/env bash
# Train a shipped guard from labelled text: extract, train, export, calibrate, evaluate.
#
# Usage: engines/train.sh NAME BACKBONE MODEL_ID DATA.jsonl..., as engines/NAME/train.sh does.
#
# BACKBONE is what siren extract takes. Needs the extras train and reference, and the guard's
# backbone. A run that was stopped goes on where it was.
#
# Settings, by the environment: MAX_ROWS (train rows of each data set, and NAME=ROWS of single ones),
# CASED (set where the tokenizer knows letters by their case: copies in capitals too), DISGUISED (set for
# copies in disguise), BEHIND (set for copies behind other text), MAX_LAYER, TRIALS, MEMBERS,
# NOISE_ROWS (train rows of each data set that are pooled in float32 too, so that the harm head is
# trained not to mind what the engine differs by; none without), EXITS (as siren train
# --exits; none without), SPAN_ROWS (of each data set, by which thresholds of spans are chosen; none
# without), SPAN_SIZES (as siren calibrate --span-sizes), THREADS, REUSE (a feature store of this
# backbone in int8, whose texts are not pooled again).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
name=$1 backbone=$2 model_id=$3
shift 3
data=("$@")
head=$here/$name work=$here/$name/.work
threads=${THREADS:-$(nproc)}

say() { printf '%s  %s\n' "$(date +%T)" "$*" >&2; }

rows=()
for number in ${MAX_ROWS:-1400}; do rows+=(--max-train-rows "$number"); done
say "1/5 extract"
siren extract "$backbone" "${data[@]}" "$here"/{written,requests,statements,languages}.jsonl -o "$work/features" --precision int8 \
    --copies "$here/copies.json" ${CASED:+--copies "$here/capitals.json"} \
    ${DISGUISED:+--copies "$here/disguises.json"} ${BEHIND:+--copies "$here/behind.json"} \
    --splits train,validation "${rows[@]}" \
    --labels "$here/categories.json" --model-id "$model_id" --threads "$threads" \
    ${MAX_LAYER:+--max-layer "$MAX_LAYER"} ${REUSE:+--reuse "$REUSE"}
if [[ -n ${NOISE_ROWS:-} ]]; then
    siren extract "$backbone" "${data[@]}" "$here"/{written,requests,statements,languages}.jsonl -o "$work/noise" --precision fp32 \
        --splits train --max-train-rows "$NOISE_ROWS" --model-id "$model_id" --threads "$threads" \
        ${MAX_LAYER:+--max-layer "$MAX_LAYER"}
fi
say "2/5 train"
siren train "$work/features" -o "$head" ${NOISE_ROWS:+--noise "$work/noise"} --seed 0 --trials "${TRIALS:-3}" \
    --members "${MEMBERS:-4}" --share 0.8 --hold-out-validation --held-out --workers "$threads" \
    ${EXITS:+--exits "$EXITS"}
# Its probes choose the neurons for the kinds of harm too, so that one pass pools both heads' alike.
siren train "$work/features" -o "$head/categories" --head categories --seed 0 --trials 1 \
    --members 1 --share 0.8 --hold-out-validation --probes "$work" --work "$work/categories" \
    --workers "$threads"
say "3/5 export"
siren export "$name" --precision int8 --overwrite --record-reference "$head/reference.json"
say "4/5 calibrate"
calibrate() { siren calibrate "$name" "${data[@]}" --record "$head" --threads "$threads" "$@"; }
if [[ -n ${SPAN_ROWS:-} ]]; then # tiers go by spans too, and spans of responses ask for a threshold, whichever
    calibrate --responses --threshold best --max-rows 300
    calibrate --spans fpr:0.05 --max-rows "$SPAN_ROWS" ${SPAN_SIZES:+--span-sizes "$SPAN_SIZES"}
fi
calibrate --responses --threshold best --tier block=fpr:0.01 --tier review=fpr:0.05
siren calibrate "$name" "${data[@]}" --head categories --labels "$here/categories.json" --threshold best \
    --record "$head/categories" --threads "$threads"
say "5/5 evaluate"
siren evaluate "$name" "${data[@]}" -o "$head/evaluation" --by category \
    --labels "$here/categories.json" --threads "$threads"
say "done"
