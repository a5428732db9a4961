#!/usr/bin/env bash
# Kills every kind of run again and again, and compares its end with that of an undisturbed one; about an hour.
#   bash scripts/torture.sh [--kills 120] [--only darts retraining table ...] [--out runs/torture]
set -euo pipefail
extras=cluster
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec "$python" scripts/torture.py "$@"
