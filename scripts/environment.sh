# Other scripts source this file. It creates .venv if necessary, and installs requirements.txt and the extras of
# pyproject.toml in the variable `extras` (dev,cluster,export) if they have changed.
# Afterwards $python is the interpreter of .venv, and the working folder is the root of the repository.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ ! -x .venv/bin/python ]; then
    base=""
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            base=$candidate
            break
        fi
    done
    if [ -z "$base" ]; then
        echo "found no Python 3.11 to 3.13 with venv; install it (Debian: apt-get install python3-venv), or set PYTHON: PYTHON=/path/to/python bash $0" >&2
        exit 2
    fi
    "$base" -m venv .venv
fi
python=$PWD/.venv/bin/python
# The stamp file records what is installed, so that a second run installs nothing.
extras=${extras:-}
stamp=.venv/installed${extras:+-$extras}
wanted=$(cat requirements.txt && sed '/^\[tool.ruff\]/,$d' pyproject.toml)
if [ "$wanted" != "$(cat "$stamp" 2>/dev/null)" ]; then
    echo "installing requirements.txt${extras:+ and the extras $extras} into .venv (3 GB to download the first time)"
    "$python" -m pip install --quiet --disable-pip-version-check -r requirements.txt ${extras:+-e ".[$extras]"}
    echo "$wanted" >"$stamp"
fi
