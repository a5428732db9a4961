#!/usr/bin/env bash
# S1 to S4 on CIFAR-10, CIFAR-100 and SVHN with the protocol of RobustDARTS. DARTS-PT uses its own protocol on CIFAR-10.
#   bash scripts/s1_s4.sh --download
# --scale small is for a laptop. If it stops, run the same command again. --help lists all arguments.
exec bash "$(dirname "$0")/table.sh" robust "$@"
