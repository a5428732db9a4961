#!/usr/bin/env bash
# Ablation of the number of search epochs: do longer searches collapse?
#   bash scripts/ablation_epochs.sh --download
# --scale small is for a laptop. If it stops, run the same command again. --help lists all arguments.
exec bash "$(dirname "$0")/table.sh" epochs "$@"
