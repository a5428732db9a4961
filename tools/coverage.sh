#!/usr/bin/env bash
# Measure the test coverage of the modules in the root folder, including scripts that the tests start.
# The exit status is 1 if the coverage of a module is below 95 %.
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
    echo "coverage.sh: error: coverage below 95 %:$missing; add tests" >&2
    exit 1
fi
exit "$status"
