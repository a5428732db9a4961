#!/usr/bin/env bash
# Ablation of Λ-DARTS: difference derivatives, exact derivatives, and noise of the same norm as their gradients.
#   bash scripts/ablation_derivatives.sh --download
# --scale small is for a laptop. If it stops, run the same command again. --help lists all arguments.
exec bash "$(dirname "$0")/table.sh" derivatives "$@"
