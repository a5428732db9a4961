#!/usr/bin/env bash
# Run the tests with the oldest or the newest releases that requirements.txt and the extras allow, in a separate
# environment (.venv-oldest or .venv-newest; 7 GB each). Set PYTHON to use an interpreter other than python3.
#   bash tools/versions.sh oldest|newest [pytest arguments]
# The oldest releases are the lower bounds. If they conflict, pip reports an error.
set -euo pipefail
cd "$(dirname "$0")/.."
which=${1:-}
case $which in
    oldest) arguments=(--constraint .venv-oldest/bounds.txt) ;;
    newest) arguments=(--upgrade --upgrade-strategy eager) ;;
    *)
        echo "versions.sh: error: WHICH: '$which', expected oldest or newest" >&2
        exit 2
        ;;
esac
shift
environment=.venv-$which
[ -x "$environment/bin/python" ] || "${PYTHON:-python3}" -m venv "$environment"
sed -nE 's/^(.*")?([a-z0-9_-]+)>=([0-9.]+),.*/\2==\3/p' requirements.txt pyproject.toml >"$environment/bounds.txt"
"$environment/bin/python" -m pip install --quiet --disable-pip-version-check "${arguments[@]}" -r requirements.txt -e ".[dev,cluster,export]"
"$environment/bin/python" --version
"$environment/bin/python" -m pip freeze --exclude-editable
"$environment/bin/python" -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile "$@"
