#!/usr/bin/env bash
# The benchmarks of speed on a GPU, from float32 in eager mode to TF32, bfloat16, CUDA graphs and compiled cells.
#   bash scripts/benchmarks_gpu.sh OUT
# PYTHON names another interpreter than python3.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -ne 1 ]; then
    echo "benchmarks_gpu.sh: error: expected OUT, a folder for the JSON files, and got $# arguments" >&2
    exit 2
fi
out=$1
mkdir -p "$out"
run() { # name, script and its flags
    PYTHONPATH=. "${PYTHON:-python3}" "benchmarks/$2" --device cuda --out "$out/$1.json" "${@:3}"
}
PYTHONPATH=. "${PYTHON:-python3}" -m pytest -q tests/test_speed.py
run eager search_step.py --methods lambda-darts darts
run graphs search_step.py --no_plain --no_count --cuda_graphs
run graphs_tf32 search_step.py --no_plain --no_count --cuda_graphs --tf32
run graphs_bf16 search_step.py --no_plain --no_count --cuda_graphs --precision bf16-mixed
run compiled search_step.py --no_plain --no_count --cuda_graphs --compile
run nasbench201 search_step.py --space nasbench201 --methods lambda-darts darts
run nasbench201_graphs search_step.py --space nasbench201 --no_plain --no_count --cuda_graphs
run retraining retraining_step.py
run retraining_bf16 retraining_step.py --precision bf16-mixed --compile
