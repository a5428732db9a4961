#!/usr/bin/env bash
# Kill runs of each kind many times, and compare their results with undisturbed runs. This takes about an hour.
#   bash tools/kill_drill.sh [--kills 120] [--only darts retraining table ...] [--out runs/kill_drill]
set -euo pipefail
extras=cluster
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/environment.sh"
exec "$python" tools/kill_drill.py "$@"
