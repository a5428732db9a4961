#!/usr/bin/env bash
# S1 to S4 on CIFAR-10, CIFAR-100 and SVHN, by RobustDARTS's protocol.
#   bash scripts/s1_s4.sh --download
# --scale small is for a laptop. Stopped, the same command goes on; --help has all arguments.
exec bash "$(dirname "$0")/table.sh" robust "$@"
