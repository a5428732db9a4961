#!/usr/bin/env bash
# iDARTS in NAS-Bench-201, as in the paper and as in its released code (docs/faithfulness.md), at the size of collapse.sh.
#   bash scripts/idarts.sh --scale study --columns CIFAR-10 --download
#   bash scripts/idarts.sh --scale study --columns folder --data DATA      # train/<class>/* and test/<class>/*
# Six searches, each of about an hour on one core. If it stops, run the same command again. --help lists all arguments.
exec bash "$(dirname "$0")/table.sh" idarts "$@"
