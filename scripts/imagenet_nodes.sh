#!/usr/bin/env bash
# Retrain a cell on ImageNet on several machines. Run the same command on each machine.
#   bash scripts/imagenet_nodes.sh NODES FIRST ARCH DATA OUT [train.py arguments]
#   bash scripts/imagenet_nodes.sh 4 node0:29500 LambdaDARTS_corr_0 /data/ILSVRC /shared/runs/imagenet
# FIRST is HOST:PORT of one of the machines, with a free port. All machines share the folder OUT. The batch of 1024
# images is split among all GPUs. If a process dies, torchrun restarts all processes from the last checkpoint.
# GPUS is the number of GPUs per machine (default: all). PYTHON is the interpreter that creates .venv.
set -euo pipefail
if [ $# -lt 5 ] || ! [[ $1 =~ ^[1-9][0-9]*$ && $2 =~ :[0-9]+$ ]] || [ ! -d "$4" ]; then
    printf "imagenet_nodes.sh: error: NODES FIRST ARCH DATA OUT:%s, expected a number, HOST:PORT, a cell, %s\n" \
        "$(printf ' %q' "$@")" "an existing folder of images and the run folder" >&2
    exit 2
fi
nodes=$1 first=$2 arch=$3
[ -e "$arch" ] && arch=$(realpath "$arch")
data=$(realpath "$4")
mkdir -p "$(dirname "$5")"
out=$(realpath -m "$5")
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
gpus=${GPUS:-$("$python" -c 'import torch; print(torch.cuda.device_count() or 1)')}
# Otherwise restarted processes can read values of the dead ones (pytorch issue 135712).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec "$python" -m torch.distributed.run --nnodes "$nodes" --nproc_per_node "$gpus" --max_restarts 3 \
    --rdzv_backend c10d --rdzv_id "$(basename "$out")" --rdzv_endpoint "$first" \
    imagenet/train.py --arch "$arch" --data "$data" --save "$out" --checkpoint_steps 200 "${@:6}"
