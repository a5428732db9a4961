#!/usr/bin/env bash
# Ablation of epsilon_0 in Λ-DARTS.
#   bash scripts/ablation_epsilon.sh --download
# --scale small is for a laptop. If it stops, run the same command again. --help lists all arguments.
exec bash "$(dirname "$0")/table.sh" epsilon "$@"
