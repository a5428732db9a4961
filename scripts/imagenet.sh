#!/usr/bin/env bash
# Retrain a cell on ImageNet with all GPUs of this machine, 8 or any number; score and export the network.
#   bash scripts/imagenet.sh ARCH DATA [OUT [train.py arguments]]
#   bash scripts/imagenet.sh LambdaDARTS_corr_0 /data/ILSVRC runs/imagenet --precision bf16-mixed
# ARCH is a published cell, a genotype file or the run folder of a search; DATA is ILSVRC's folder.
# If it stops, the same command continues with the next batch. PYTHON names another interpreter to make .venv with.
set -euo pipefail
if [ $# -lt 2 ] || [ ! -d "$2" ]; then
    printf "imagenet.sh: error: ARCH DATA: %q %q, expected a cell and the folder of the pictures\n" "${1:-}" "${2:-}" >&2
    exit 2
fi
arch=$1
[ -e "$arch" ] && arch=$(realpath "$arch")
data=$(realpath "$2")
out=${3:-}
case $out in
    "" | /*) ;;
    *) out=$PWD/$out ;;
esac
extras=export
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
out=${out:-runs/imagenet}
plugins=() # --plugin FILE among the arguments, for every script
for ((i = 4; i < $#; i++)); do
    next=$((i + 1))
    [ "${!i}" != --plugin ] || plugins+=(--plugin "${!next}")
done
gpus=$("$python" -c 'import torch; print(torch.cuda.device_count() or 1)')
if [ -f "$out/result.json" ]; then # as files.is_finished
    echo "$out is finished"
elif [ -f "$out/config.yaml" ]; then
    "$python" imagenet/train.py --resume "$out" --data "$data" --devices "$gpus" "${plugins[@]}"
else
    "$python" imagenet/train.py --arch "$arch" --data "$data" --devices "$gpus" --save "$out" "${@:4}"
fi
"$python" imagenet/test.py "$out" --data "$data" "${plugins[@]}"
[ -e "$out/model.onnx" ] || "$python" train/export.py "$out" "${plugins[@]}"
