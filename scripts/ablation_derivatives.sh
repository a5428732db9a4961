#!/usr/bin/env bash
# Differences, exact derivatives and noise of their length: does the alignment do the work?
#   bash scripts/ablation_derivatives.sh --download
# --scale small is for a laptop. If it stops, run the same command again. --help lists all arguments.
exec bash "$(dirname "$0")/table.sh" derivatives "$@"
