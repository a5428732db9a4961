#!/usr/bin/env bash
# Λ-DARTS's epsilon_0.
#   bash scripts/ablation_epsilon.sh --download
# --scale small is for a laptop. If it stops, run the same command again. --help lists all arguments.
exec bash "$(dirname "$0")/table.sh" epsilon "$@"
