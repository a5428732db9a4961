#!/usr/bin/env bash
# Retrain a cell on ImageNet with all GPUs of this machine, then score and export the network.
#   bash scripts/imagenet.sh ARCH DATA [OUT [train.py arguments]]
#   bash scripts/imagenet.sh LambdaDARTS_corr_0 /data/ILSVRC runs/imagenet --precision bf16-mixed
# ARCH is a published cell, a genotype file or the run folder of a search. DATA is the folder of ILSVRC.
# If it stops, run the same command again: it continues with the next batch. PYTHON is the interpreter that creates .venv.
set -euo pipefail
if [ $# -lt 2 ] || [ ! -d "$2" ]; then
    printf "imagenet.sh: error: ARCH DATA: %q %q, expected a cell and an existing folder of images\n" "${1:-}" "${2:-}" >&2
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
plugins=() # pass each --plugin FILE to all scripts
for ((i = 4; i < $#; i++)); do
    next=$((i + 1))
    [ "${!i}" != --plugin ] || plugins+=(--plugin "${!next}")
done
gpus=$("$python" -c 'import torch; print(torch.cuda.device_count() or 1)')
if [ -f "$out/result.json" ]; then # like files.is_finished
    echo "$out is already finished"
elif [ -f "$out/config.yaml" ]; then
    "$python" imagenet/train.py --resume "$out" --data "$data" --devices "$gpus" "${plugins[@]}"
else
    "$python" imagenet/train.py --arch "$arch" --data "$data" --devices "$gpus" --save "$out" "${@:4}"
fi
"$python" imagenet/test.py "$out" --data "$data" "${plugins[@]}"
[ -e "$out/model.onnx" ] || "$python" train/export.py "$out" "${plugins[@]}"
