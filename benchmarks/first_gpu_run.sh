#!/usr/bin/env bash
# The first ten minutes on a GPU: GPU tests, a real search in NAS-Bench-201 that is stopped and resumed, step times of
# the search, and depthwise kernels. benchmarks/README.md lists the requirements.
#   bash benchmarks/first_gpu_run.sh OUT [--smoke] [--device cpu] [--seconds 530]
# --smoke imports everything and runs a tiny step of each kind, in at most a minute. --device cpu uses toy sizes.
# Environment variables: CIFAR10 is the folder of the images (with train/<class>/*, or with cifar-10-batches-py), SEARCH
# is the search.tar.gz of an earlier run to continue, and PYTHON is the interpreter.
# The least tested steps come first.
set -uo pipefail
name=first_gpu_run.sh whole=530
source "$(dirname "${BASH_SOURCE[0]}")/gpu_steps.sh"

tests=() sizes=(--rounds 10) depthwise=() graphs=(contiguous-graphs) last=(channels_last channels_last-graphs)
search=(--method lambda-darts --init_channels 16 --cells_per_stage 5 --cuda_graphs) seconds=75
if [ "$device" = cpu ]; then
    sizes=(--rounds 1 --init_channels 2 --layers 4 --cells_per_stage 1 --image_size 8 --batch_size 8)
    depthwise=(--batch_size 2 --rounds 1) graphs=() last=(channels_last)
    search=(--method lambda-darts --init_channels 2 --cells_per_stage 1 --dataset digits --batch_size 256 --epochs 1000)
    seconds=100
elif [ "$(nproc)" -ge 8 ]; then
    tests=(--numprocesses 6)
fi
step tests 130 "$python" -m pytest -q -p no:cacheprovider tests/test_gpu.py "${tests[@]}"

# The search writes a checkpoint and a row of metrics.csv after each epoch. It is stopped after $seconds, or on a CPU
# after two more epochs. It exits with status 130 after SIGTERM; timeout exits with status 124.
interrupted() { # NAME, and flags of train_search.py
    local enough=999999 limit=$((whole - SECONDS - 20)) # reserves 20 s to kill a search that hangs
    [ $limit -le $seconds ] || limit=$seconds
    [ "$device" = cuda ] || enough=$(($(rows) + 3))
    # shellcheck disable=SC2016
    local stop='limit=$1 enough=$2 log=$3; shift 3
        timeout --kill-after=10 "$limit" "$@" & pid=$!
        until [ "$(cat "$log" 2>/dev/null | wc -l)" -ge "$enough" ]; do kill -0 $pid 2>/dev/null || break; sleep 0.5; done
        kill $pid 2>/dev/null; wait $pid; status=$?; [ $status = 124 ] || [ $status = 130 ]'
    local command=("$python" nasbench201/train_search.py --device "$device" "${@:2}")
    step "$1" $((limit + 20)) bash -c "$stop" - "$limit" "$enough" "$run/metrics.csv" "${command[@]}"
}
rows() { # lines in metrics.csv of the search
    [ ! -e "$run/metrics.csv" ] && echo 0 || wc -l <"$run/metrics.csv"
}
if [ "$device" = cpu ] || [ -n "${CIFAR10:-}" ]; then
    where=() run=$work/search
    if [ "$device" = cuda ]; then
        kind=cifar10
        [ ! -d "$CIFAR10/train" ] || kind=folder
        where=(--data "$CIFAR10")
        search+=(--dataset "$kind" "${where[@]}")
    fi
    if [ -n "${SEARCH:-}" ]; then
        mkdir "$run" && tar -xzf "$SEARCH" -C "$run"
        interrupted search --resume "$run" "${where[@]}"
    else
        interrupted search "${search[@]}" --save "$run"
    fi
    before=$(rows)
    interrupted resume --resume "$run" "${where[@]}"
    step resumed 5 test "$(rows)" -gt "$before"
    [ ! -e "$run" ] || tar -czf "$out/search.tar.gz" -C "$run" .
else
    printf 'search\tskipped: CIFAR10 is not set\n' | tee -a "$out/summary.tsv"
fi

times() { # NAME SECONDS, and flags of search_step.py
    local flags=(--device "$device" --count no "${sizes[@]}" --out "$work/$1.json")
    step "$1" "$2" "$python" benchmarks/search_step.py "${flags[@]}" "${@:3}"
}
times s5 110 --space s5 --ways contiguous "${graphs[@]}" plain
times methods 110 --space s5 --methods darts lambda-darts-exact --ways contiguous "${graphs[@]}"
all=(lambda-darts darts lambda-darts-exact)
times nasbench201 150 --space nasbench201 --methods "${all[@]}" --ways contiguous "${graphs[@]}" "${last[@]}" plain
step depthwise 40 "$python" benchmarks/depthwise.py --device "$device" "${depthwise[@]}" --out "$work/depthwise.json"
# Last, in the remaining time, because cuDNN compiles kernels for minutes.
times s5_channels_last 300 --space s5 --ways "${last[@]}"
finish
