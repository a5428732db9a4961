#!/usr/bin/env bash
# The project's checks: lint, format, types, tests (on up to four cores). Makes the environment first where it is missing.
#   bash scripts/test.sh [pytest arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
"$python" -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal "$@"
