#!/usr/bin/env bash
# The length of the search: does a longer one collapse?
#   bash scripts/ablation_epochs.sh --download
# --scale small is for a laptop. If it stops, run the same command again. --help lists all arguments.
exec bash "$(dirname "$0")/table.sh" epochs "$@"
