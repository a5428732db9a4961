#!/usr/bin/env bash
# DARTS and Λ-DARTS in NAS-Bench-201 on 10,000 CIFAR-10 images, at a size at which DARTS collapses to skip
# connections.
#   bash scripts/collapse.sh DATA           # a folder with train/<class>/* and test/<class>/*
#   bash scripts/collapse.sh --download     # downloads CIFAR-10
#   bash scripts/collapse.sh DATA study     # five methods, four seeds each
# On one core DARTS takes about 20 minutes and Λ-DARTS 40. With two cores both run at the same time. The study takes about
# 10 hours of one core. If it stops, run the same command again.
set -euo pipefail
scale=${2:-small}
if [ $# -gt 2 ] || { [ "$scale" != small ] && [ "$scale" != study ]; }; then
    printf "collapse.sh: error: arguments: '%s', expected DATA or --download, optionally followed by small or study\n" "$*" >&2
    exit 2
fi
case ${1:-} in
    --download) data=(--columns CIFAR-10 --download) ;;
    *)
        if [ ! -d "${1:-}" ]; then
            printf "collapse.sh: error: DATA: '%s', expected a folder of images, or --download\n" "${1:-}" >&2
            exit 2
        fi
        data=(--columns folder --data "$(cd "$1" && pwd)")
        ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=runs/collapse-$scale
echo "the searches write their progress to $out/*/*/seed-*/search.log"
bash "$PWD/scripts/table.sh" collapse --scale "$scale" "${data[@]}" --out "$out"
cells=()
[ "$scale" = study ] || cells=(--cells)
rm -f "$out/collapse.png"
.venv/bin/python analysis/compare.py "$out"/*/*/seed-*/search ${cells[@]+"${cells[@]}"} --out "$out/collapse.png"
