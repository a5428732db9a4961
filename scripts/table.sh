#!/usr/bin/env bash
# Reproduce a table by its name. The scripts of the tables call this script.
#   bash scripts/table.sh NAME [reproduce.py arguments]
# --help and --dry_run install nothing. Otherwise the script first creates .venv with Ray.
set -euo pipefail
here=$PWD root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
for argument in "$@"; do
    case $argument in
        -h | --help | --dry[-_]run*)
            python=$root/.venv/bin/python
            [ -x "$python" ] || python=${PYTHON:-python3}
            if "$python" -c "import jsonargparse, yaml" 2>/dev/null; then
                PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "$python" "$root/scripts/reproduce.py" --table "$@"
            fi
            makes="pip install -r requirements.txt -e '.[cluster]' installs them"
            if [[ $argument = --dry* ]]; then
                echo "table.sh: error: --dry_run: $python lacks jsonargparse or PyYAML; $makes" >&2
                exit 2
            fi
            sed -n '1,/^"""$/{s/^"""//;p}' "$root/scripts/reproduce.py"
            echo "The list of all arguments needs jsonargparse and PyYAML: $makes."
            exit 0
            ;;
    esac
done
extras=cluster
source "$root/scripts/environment.sh"
cd "$here"
exec "$python" "$root/scripts/reproduce.py" --table "$@"
