#!/usr/bin/env bash
# Everything that needs a GPU, in one command, on a machine without network: tests, then the whole loop on the embedded pair
# grown to the shapes of Llama-2-7B and llama-68m. A stage that fails does not stop those that need nothing of it.
# Usage: benchmarks/gpu.sh RESULTS_FOLDER [STAGE ...]   (all stages by default: half an hour on an H200)
# Stages: tests loop decoding engine calls sampling rules predictions audit budgets drafts training vision offload multi
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: benchmarks/gpu.sh RESULTS_FOLDER [STAGE ...]}
shift
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=""

tests() {
    python3 -m pytest -m gpu -n 12 -q -W default 2>&1 | tee "$out/gpu-tests.log"
    # unmarked: they run in Triton's interpreter elsewhere
    python3 -m pytest tests/treespec/kernels tests/treespec/models/test_kernel_passes.py -m "not gpu" -n 12 -q -W default 2>&1 |
        tee "$out/kernel-tests.log"
}

loop() {
    python3 -m benchmarks.loop --folder "$work" --out "$out/loop-gpu.json"
}

decoding() {
    rm -rf "${work:?}"/*
    python3 -m benchmarks.decoding --inflate --out "$out/decoding-gpu.json"
}

engine() {
    rm -rf "${work:?}"/*
    python3 -m benchmarks.engine --out "$out/engine.json"
}

sampling() {
    python3 -m benchmarks.sampling --inflate --prompts 8 --no-budgets --temperatures 0 1 --out "$out/sampling-gpu.json" &&
        python3 -m benchmarks.sampling --inflate --prompts 6 --no-budgets --temperatures 0.2 0.6 --out "$out/sampling-gpu-mid.json"
}

rules() {
    python3 -m benchmarks.rules --out "$out/rules-gpu.json"
}

predictions() {
    python3 -m benchmarks.predictions --inflate --out "$out/predictions-gpu.json" &&
        python3 -m benchmarks.predictions --small --out "$out/predictions-gpu-small.json"
}

audit() {
    python3 -m benchmarks.audit --inflate --out "$out/audit-gpu.json" &&
        python3 -m benchmarks.audit --inflate --prompts 40 --choices 0 --out "$out/audit-40-gpu.json"
}

budgets() {
    python3 -m benchmarks.budgets --inflate --out "$out/budgets-gpu.json"
}

drafts() {
    python3 -m benchmarks.drafts --levels --out "$out/levels-gpu.json" &&
        python3 -m benchmarks.drafts --inflate --out "$out/drafts-gpu.json"
}

calls() {
    python3 -m benchmarks.calls --inflate --out "$out/calls-gpu.json"
}

training() {
    python3 -m benchmarks.train_draft --out "$out/training-gpu.json"
}

vision() {
    python3 -m benchmarks.vision --out "$out/vision-gpu.json"
}

offload() {
    python3 -m benchmarks.offload --out "$out/offload-gpu.json"
}

multi() { # on one GPU only what one can measure; it says what is left out
    python3 -m benchmarks.multi_gpu --out "$out/multi-gpu.json"
}

python3 -m pip install --quiet --no-index --no-deps --no-build-isolation -e .
for stage in ${@:-tests loop decoding engine calls sampling rules predictions audit budgets drafts training vision offload multi}; do
    echo "== $stage"
    SECONDS=0
    "$stage" || failed="$failed $stage"
    echo "== $stage took $SECONDS s"
done
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
