#!/usr/bin/env bash
# Λ-DARTS's epsilon_0.
#   bash scripts/ablation_epsilon.sh --nasbench_table table.safetensors --download
# --scale small is for a laptop. Stopped, the same command goes on; --help has all arguments.
exec bash "$(dirname "$0")/table.sh" epsilon "$@"
