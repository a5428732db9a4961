#!/usr/bin/env bash
# Kills every kind of run again and again, and compares its end with that of an undisturbed one; about an hour.
#   bash tools/kill_drill.sh [--kills 120] [--only darts retraining table ...] [--out runs/kill_drill]
set -euo pipefail
extras=cluster
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/environment.sh"
exec "$python" tools/kill_drill.py "$@"
