#!/usr/bin/env bash
# A table by its name: what the scripts of the tables call.
#   bash scripts/table.sh NAME [reproduce.py arguments]
set -euo pipefail
here=$PWD
extras=cluster
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
root=$PWD
cd "$here"
exec "$python" "$root/scripts/reproduce.py" --table "$@"
