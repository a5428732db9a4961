#!/usr/bin/env bash
# Mutation tests: do the tests of [tool.mutmut] in pyproject.toml notice when a module that it names is changed?
#   bash tools/mutants.sh [what to mutate, such as "genotypes*"]
# Afterwards `.venv/bin/mutmut results` lists those that nothing noticed, and `.venv/bin/mutmut show NAME` shows one.
set -euo pipefail
extras=dev
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/environment.sh"
"$python" -m pip install --quiet --disable-pip-version-check "mutmut~=3.8.1"
export OMP_NUM_THREADS=1
mkdir -p mutants
git ls-files '*.py' '*.json' pyproject.toml | tar -c -T - | tar -x -C mutants # what the tests import
"$python" -m mutmut run --max-children 2 "$@"
