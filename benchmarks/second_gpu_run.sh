#!/usr/bin/env bash
# The second ten minutes on a GPU: TF32, bfloat16 and compilation in searches and retrainings, and the ImageNet loader.
#   bash benchmarks/second_gpu_run.sh OUT [--smoke] [--device cpu] [--seconds 530]
# The arguments are those of first_gpu_run.sh. It needs no data.
set -uo pipefail
name=second_gpu_run.sh whole=530
source "$(dirname "${BASH_SOURCE[0]}")/gpu_steps.sh"

sizes=(--rounds 10) cells=() retraining=(--rounds 10) pictures=(--workers "$(nproc)") low=()
ways=(channels_last contiguous) compiling=(150 200) graphs=(contiguous-graphs)
if [ "$device" = cpu ]; then
    cells=(--init_channels 2 --layers 4)
    low=("${cells[@]}" --batch_size 8 --image_size 8)
    sizes=("${low[@]}" --rounds 1)
    retraining=("${cells[@]}" --batch_size 8 --rounds 1)
    pictures=("${cells[@]}" --image_size 64 --batch_size 4 --pictures 8 --workers 1 --rounds 1)
    ways=(contiguous) graphs=() compiling=(15 15)
fi

run() { # NAME SECONDS SCRIPT, and its flags
    step "$1" "$2" "$python" "benchmarks/$3" --device "$device" --out "$work/$1.json" "${@:4}"
}
run retraining 60 retraining_step.py "${retraining[@]}" --ways "${ways[@]}" plain
run retraining_tf32 60 retraining_step.py "${retraining[@]}" --ways "${ways[@]}" --tf32
run retraining_bf16 60 retraining_step.py "${retraining[@]}" --ways "${ways[@]}" --precision bf16-mixed
run imagenet 100 imagenet_loader.py "${pictures[@]}"
exact=(search_step.py --count no --methods lambda-darts-exact "${sizes[@]}" --ways contiguous "${graphs[@]}")
run search_tf32 90 "${exact[@]}" --tf32
run search_bf16 90 "${exact[@]}" --precision bf16-mixed
run low_precision_s2 40 low_precision.py --space s2 --epsilon_0 1e-3 "${low[@]}"
run low_precision_s5 40 low_precision.py --space s5 "${low[@]}"
# Last, in the remaining time, because compilation takes minutes.
compiled=("${retraining[@]}" --ways contiguous --precision bf16-mixed --compile)
run retraining_compiled "${compiling[0]}" retraining_step.py "${compiled[@]}"
run search_compiled "${compiling[1]}" search_step.py --count no --methods darts "${sizes[@]}" --ways contiguous --compile
finish
