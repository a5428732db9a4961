#!/usr/bin/env bash
# Check the project: lint, format, types and tests, on at least two cores. The script creates .venv if necessary.
#   bash scripts/test.sh                          # all checks, without the tests marked slow: a few minutes
#   bash scripts/test.sh --all                    # all checks and all tests
#   bash scripts/test.sh tests/test_x.py -k name  # all checks; pytest arguments select the tests, including slow ones
set -euo pipefail
extras=dev,cluster,export
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
case "${1:-}" in
    "") tests=(-m "not slow") ;;
    --all) tests=("${@:2}") ;;
    *) tests=("$@") ;;
esac
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" tools/prose.py
types=$(mktemp)
trap 'rm -f "$types"' EXIT
"$python" -m mypy >"$types" 2>&1 & # at the same time as the tests, because it uses only one core
status=0
"$python" -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile "${tests[@]}" || status=$?
wait $! || status=$?
cat "$types"
exit "$status"
