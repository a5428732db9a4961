#!/usr/bin/env bash
# Mutation tests: change the modules of [tool.mutmut] in pyproject.toml, and check that its tests fail.
#   bash tools/mutants.sh [PATTERN]     # only mutate what matches PATTERN, such as "genotypes*"
# Afterwards `.venv/bin/mutmut results` lists mutants that no test noticed, and `.venv/bin/mutmut show NAME` shows one.
set -euo pipefail
extras=dev
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/environment.sh"
"$python" -m pip install --quiet --disable-pip-version-check "mutmut~=3.8.1"
export OMP_NUM_THREADS=1
mkdir -p mutants
git ls-files '*.py' '*.json' pyproject.toml | tar -c -T - | tar -x -C mutants # the files that the tests import
"$python" -m mutmut run --max-children 2 "$@"
