#!/usr/bin/env bash
# The first ten minutes on a GPU: depthwise kernels, the GPU tests, step times of the search, and a real search of
# NAS-Bench-201 that is stopped and resumed. benchmarks/README.md says what to bring.
#   bash benchmarks/first_gpu_run.sh OUT [--smoke] [--device cpu] [--seconds 530]
# --smoke takes a minute at most: all imports, and a tiny step of each kind. --device cpu does the same sizes on a CPU.
# CIFAR10 names the images (a folder with train/<class>/*, or the official cifar-10-batches-py's), TABLE the accuracy
# table of NAS-Bench-201, SEARCH the search.tar.gz of an earlier run to go on with, PYTHON an interpreter.
set -uo pipefail
name=first_gpu_run.sh whole=530
source "$(dirname "${BASH_SOURCE[0]}")/gpu_steps.sh"

step imports 60 "$python" -c "
import torch, pytorch_lightning, jsonargparse, tensorboard, rich
import analysis.draw, analysis.page, imagenet.train, nasbench201.search201, nasbench201.table, search.loop, train.train
print(torch.__version__, torch.version.cuda, torch.backends.cudnn.version(), pytorch_lightning.__version__)
if '$device' == 'cuda':
    print(torch.cuda.get_device_name(), torch.cuda.get_device_capability(), torch.cuda.mem_get_info())
"
sizes=(--rounds 10) layouts=(channels_last contiguous) graphs=() tests=()
[ "$device" = cpu ] || graphs=(channels_last-graphs contiguous-graphs)
depthwise=() search=(--method lambda-darts --init_channels 16 --cells_per_stage 5) seconds=45
if [ -n "$toy" ]; then
    sizes=(--rounds 1 --init_channels 2 --layers 4 --cells_per_stage 1 --image_size 8 --batch_size 8)
    depthwise=(--batch_size 2 --rounds 1)
    tests=(-k "average_pooling or second_gpu or (captured and nasbench201)")
    search=(--method lambda-darts --init_channels 2 --cells_per_stage 1 --dataset digits --batch_size 256 --epochs 1000)
    seconds=7
    [ "$device" = cpu ] || layouts=(contiguous) graphs=(contiguous-graphs)
fi
step depthwise 60 "$python" benchmarks/depthwise.py --device "$device" "${depthwise[@]}" --out "$work/depthwise.json"
if [ -z "$smoke" ] && [ "$(nproc)" -ge 8 ]; then tests+=(--numprocesses 4); fi
step tests 130 "$python" -m pytest -q -p no:cacheprovider tests/test_gpu.py "${tests[@]}"

steps() { # NAME SECONDS, and flags of search_step.py
    step "$1" "$2" "$python" benchmarks/search_step.py --device "$device" --count no "${sizes[@]}" --out "$work/$1.json" "${@:3}"
}
steps nasbench201 90 --space nasbench201 --ways "${layouts[@]}" "${graphs[@]}" plain
steps s5 120 --space s5 --ways "${layouts[@]}" "${graphs[@]}" plain

# The search writes a checkpoint an epoch. Ctrl-C ends it with status 130.
if [ -n "$toy" ] || [ -n "${CIFAR10:-}" ]; then
    if [ -z "$toy" ]; then
        kind=cifar10
        [ ! -d "$CIFAR10/train" ] || kind=folder
        search+=(--dataset "$kind" --data "$CIFAR10")
        [ -z "${TABLE:-}" ] || search+=(--table "$TABLE")
        [ "$device" = cpu ] || search+=(--cuda_graphs)
    fi
    run=$work/search
    begin=(--device "$device" "${search[@]}" --save "$run")
    if [ -n "${SEARCH:-}" ]; then
        mkdir "$run" && tar -xzf "$SEARCH" -C "$run"
        begin=(--resume "$run" --device "$device")
        [ -n "$toy" ] || begin+=(--data "$CIFAR10")
    fi
    # shellcheck disable=SC2016
    stopped='status=0; limit=$1; shift; timeout --signal=INT "$limit" "$@" || status=$?; [ $status = 124 ]'
    step search $((seconds + 20)) bash -c "$stopped" - "$seconds" "$python" nasbench201/train_search.py "${begin[@]}"
    before=$(wc -l <"$run/metrics.csv")
    again=(--resume "$run" --device "$device")
    step resume $((seconds + 20)) bash -c "$stopped" - "$seconds" "$python" nasbench201/train_search.py "${again[@]}"
    step resumed 5 test "$(wc -l <"$run/metrics.csv")" -gt "$before"
    tar -czf "$out/search.tar.gz" -C "$run" .
else
    printf 'search\tleft out: CIFAR10 names no images\n' | tee -a "$out/summary.tsv"
fi
[ -n "$smoke" ] || steps methods 150 --space nasbench201 --methods lambda-darts-exact darts --ways "${layouts[@]}" "${graphs[@]}"
finish
