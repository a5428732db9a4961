#!/usr/bin/env bash
# Checks the project: lint, format, types and tests, on two cores or more. Makes the environment first if it is missing.
#   bash scripts/test.sh                          # all checks, without the tests marked slow: a few minutes
#   bash scripts/test.sh --all                    # all checks and all tests
#   bash scripts/test.sh tests/test_x.py -k name  # arguments of pytest: the tests they select, slow ones included
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
types=$(mktemp)
trap 'rm -f "$types"' EXIT
"$python" -m mypy >"$types" 2>&1 & # beside the tests, because it uses one core only
status=0
"$python" -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile "${tests[@]}" || status=$?
wait $! || status=$?
cat "$types"
exit "$status"
