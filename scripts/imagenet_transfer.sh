#!/usr/bin/env bash
# Transfer to ImageNet: search on CIFAR-10, and retrain the cells on 8 GPUs.
#   bash scripts/imagenet_transfer.sh --set search.download=true retrain.data=ILSVRC
# --scale small is for a laptop. If it stops, run the same command again. --help lists all arguments.
exec bash "$(dirname "$0")/table.sh" imagenet "$@"
