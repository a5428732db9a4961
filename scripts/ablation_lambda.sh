#!/usr/bin/env bash
# Ablation of lambda in Λ-DARTS, with difference and exact derivatives.
#   bash scripts/ablation_lambda.sh --download
# --scale small is for a laptop. If it stops, run the same command again. --help lists all arguments.
exec bash "$(dirname "$0")/table.sh" lambda "$@"
