#!/usr/bin/env bash
# Λ-DARTS's lambda, by differences and exactly.
#   bash scripts/ablation_lambda.sh --download
# --scale small is for a laptop. If it stops, run the same command again. --help lists all arguments.
exec bash "$(dirname "$0")/table.sh" lambda "$@"
