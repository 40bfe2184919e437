#!/usr/bin/env bash
# Everything that needs a GPU, in one command, on a machine without network: tests, then the whole loop on the embedded pair
# grown to the shapes of Llama-2-7B and llama-68m. Usage: benchmarks/gpu.sh RESULTS_FOLDER   (about ten minutes on an H200)
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: benchmarks/gpu.sh RESULTS_FOLDER}
mkdir -p "$out"
python3 -m pip install --quiet --no-index --no-deps --no-build-isolation -e .
python3 -m pytest -m gpu -q -W default 2>&1 | tee "$out/gpu-tests.log"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m benchmarks.inflate --out "$work"
pair="--target $work/target --draft $work/draft --device cuda --dtype float16"
python3 -m treeopt profile acceptance $pair --dataset stdlib --num-prompts 64 -o "$out/acceptance.json"
python3 -m treeopt profile latency $pair --context 256,1024 -o "$out/latency.json"
python3 -m treeopt generate --acceptance "$out/acceptance.json" --latency "$out/latency.json" --context 256 -o "$out/tree.pt"
python3 -m treeopt evaluate $pair --growmap "$out/tree.pt" --dataset stdlib --start 64 --num-prompts 12 --breakdown -o "$out/report.json"
rm -rf "$work"/*
python3 -m benchmarks.decoding --inflate --out "$out/decoding-gpu.json"
