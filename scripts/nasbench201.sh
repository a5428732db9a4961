#!/usr/bin/env bash
# The table of NAS-Bench-201: every method, four seeds, the published figures beside. Stopped, the same command goes on.
#   bash scripts/nasbench201.sh TABLE [OUT [train_search.py arguments]]
#   bash scripts/nasbench201.sh table.safetensors runs/nasbench201 --dataset cifar100 --download
# TABLE is what `python nasbench201/table.py build` made.
set -euo pipefail
if [ $# -lt 1 ] || [ ! -f "$1" ]; then
    echo "nasbench201.sh: error: TABLE: '${1:-}', expected a file that nasbench201/table.py build made" >&2
    exit 2
fi
table=$(realpath "$1")
out=${2:-}
case $out in
    "" | /*) ;;
    *) out=$PWD/$out ;;
esac
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
out=${out:-runs/nasbench201}
arguments=("${@:3}")
if [ ${#arguments[@]} -eq 0 ]; then
    arguments=(--download)
fi

methods=(darts darts-2nd lambda-darts lambda-darts-exact darts-minus fair-darts idarts darts-pt)
for method in "${methods[@]}"; do
    run=$out/$method
    if [ -e "$run/results.json" ]; then
        echo "$run is finished"
    elif [ -e "$run/config.yaml" ]; then
        "$python" nasbench201/train_search.py --resume "$run"
    else
        "$python" nasbench201/train_search.py --method "$method" --table "$table" --seeds 0 1 2 3 --save "$run" "${arguments[@]}"
    fi
done
"$python" nasbench201/report.py "${methods[@]/#/$out/}"
