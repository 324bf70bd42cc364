#!/usr/bin/env bash
# minilm and gemma3-270m as one guard, whose score is the mean of theirs.
#
# Usage: engines/pair/make.sh                  compile both; ensemble.json says how they decide
#        engines/pair/make.sh DATA.jsonl...    also calibrate anew on validation rows, and evaluate
#
# Needs the extras export and gguf and both backbones (siren export says how to install one that is not
# there), and with data the extra train. What comes out is in bundle/. THREADS in the environment: of
# each engine.
set -euo pipefail
shopt -s nullglob
here=$(dirname "$0")  # not made absolute: reports name it
bundle=$here/bundle

# What a head in folder $1 is and decides by, a file a line.
parts() { printf '%s\n' "$1"/{siren.safetensors,siren_config.json,decision.json}*; }
digests() { (cd "$here" && { parts ../minilm && parts ../gemma3-270m; } | xargs -d '\n' sha256sum); }
# Whether a guard's bundle, in $bundle/$1, is not there or older than what it is made of.
outdated() {
    local part
    [[ -f $bundle/$1/guard.json ]] || return 0
    while IFS= read -r part; do
        [[ $part -nt $bundle/$1/guard.json ]] && return 0
    done < <(parts "$here/../$1" && parts "$here/../$1/categories")
    return 1
}

# ensemble.json holds for the heads that it was calibrated with.
if (($# == 0)) && ! diff "$here/heads.sha256" <(digests) >&2; then
    echo "$here/ensemble.json is of other heads or decisions; calibrate anew: $0 DATA.jsonl..." >&2
    exit 1
fi
mkdir -p "$bundle"
for guard in minilm gemma3-270m; do
    if outdated "$guard"; then
        siren export "$guard" --precision int8 -o "$bundle/$guard" --overwrite
    fi
done
cp "$here/ensemble.json" "$bundle/ensemble.json"
if (($#)); then
    options=(--threads "${THREADS:-$(nproc)}")
    # Spans of responses are chosen apart where these have a threshold, whichever.
    siren calibrate "$bundle" "$@" --responses --threshold best --max-rows 300 "${options[@]}"
    siren calibrate "$bundle" "$@" --spans fpr:0.05 --span-sizes 64 --max-rows 60 "${options[@]}"
    siren calibrate "$bundle" "$@" --responses --threshold best --tier block=fpr:0.01 \
        --tier review=fpr:0.05 "${options[@]}" # tiers go by spans too
    cp "$bundle/ensemble.json" "$here/ensemble.json"
    digests > "$here/heads.sha256"
    siren evaluate "$bundle" "$@" -o "$here/evaluation" --by category \
        --labels "$here/../categories.json" "${options[@]}"
fi
