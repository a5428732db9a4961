#!/usr/bin/env bash
# NAS-Bench-201: every method with four seeds, its cells looked up in the benchmark's table.
#   bash scripts/nasbench201.sh --download
# --scale small is for a laptop. If it stops, run the same command again. --help lists all arguments.
exec bash "$(dirname "$0")/table.sh" nasbench201 "$@"
