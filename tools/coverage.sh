#!/usr/bin/env bash
# Measures how much of each module of the root the tests run, in their own process and in the scripts that they start.
# Fails if the tests run less than 95 % of a module's lines.
#   bash tools/coverage.sh [pytest arguments]
set -euo pipefail
extras=dev,cluster,export
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/environment.sh"
"$python" -m pip install --quiet --disable-pip-version-check "coverage~=7.17.4"
"$python" -m coverage erase
status=0
"$python" -m coverage run -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile "$@" || status=$?
"$python" -m coverage combine --quiet
"$python" -m coverage report
for module in $(git ls-files "*.py" ":!*/*" ":!setup.py"); do
    "$python" -m coverage report --include="$module" --fail-under=95 >/dev/null || missing="${missing:-} $module"
done
if [ -n "${missing:-}" ]; then
    echo "less than 95 % of:$missing" >&2
    exit 1
fi
exit "$status"
