#!/usr/bin/env bash
# A table by its name, and the report of what is there: what the scripts of the tables call.
#   bash scripts/table.sh NAME [reproduce.py arguments]
here=$PWD
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
root=$PWD
cd "$here"
exec "$python" "$root/scripts/reproduce.py" --table "$@"
