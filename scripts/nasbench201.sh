#!/usr/bin/env bash
# NAS-Bench-201: search with each method and four seeds, and look up the cells in the table of the benchmark.
#   bash scripts/nasbench201.sh --download
# --scale small is for a laptop. If it stops, run the same command again. --help lists all arguments.
exec bash "$(dirname "$0")/table.sh" nasbench201 "$@"
