#!/usr/bin/env bash
# The length of the search: does a longer one collapse?
#   bash scripts/ablation_epochs.sh --nasbench_table table.safetensors --download
# --scale small is for a laptop. Stopped, the same command goes on; --help has all arguments.
exec bash "$(dirname "$0")/table.sh" epochs "$@"
