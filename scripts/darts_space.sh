#!/usr/bin/env bash
# The DARTS space on CIFAR-10 and CIFAR-100: search with each method, retrain for 600 epochs, and score.
#   bash scripts/darts_space.sh --download
# --scale small is for a laptop. If it stops, run the same command again. --help lists all arguments.
exec bash "$(dirname "$0")/table.sh" darts "$@"
