#!/usr/bin/env bash
# DARTS collapses into skip connections in NAS-Bench-201, and Λ-DARTS does not: two searches on 10,000 CIFAR-10 images.
#   bash scripts/collapse.sh DATA              # a folder with train/<class>/* and test/<class>/*
#   bash scripts/collapse.sh --download        # downloads CIFAR-10
#   bash scripts/collapse.sh DATA --scale study --out runs/study    # five methods, four seeds each: ten hours of one core
# On one core DARTS takes about 20 minutes and Λ-DARTS 40; two cores run both at once. If it stops, run the same command
# again. Further arguments are those of scripts/reproduce.py.
set -euo pipefail
case ${1:-} in
    --download) data=(--columns CIFAR-10 --download) ;;
    "" | -*)
        printf "collapse.sh: error: %q, expected a folder of images or --download first\n" "${1:-}" >&2
        exit 2
        ;;
    *) data=(--columns folder --data "$1") ;;
esac
exec bash "$(dirname "$0")/table.sh" collapse --scale small "${data[@]}" "${@:2}"
