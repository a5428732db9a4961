"""Bounds of the requirements, and scripts without them."""

import json
import re
import subprocess
import sys
import tomllib

from tests.helpers import ROOT, assert_refused, script, script_in_process

#: prints, for each of some scripts, the end of its --help and whether it imported torch
HELPS = """
import contextlib, io, json, runpy, sys

found = {}
for script in sys.argv[1:]:
    out, err = io.StringIO(), io.StringIO()
    sys.argv = [script, "--help"]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
    found[script] = [status, "usage:" in out.getvalue(), err.getvalue(), "torch" in sys.modules]
print(json.dumps(found))
"""


def test_the_lower_bounds_are_what_the_oldest_environment_installs():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    lines = [*(line for line in lines if line[0] not in "#-"), *(line for extra in extras.values() for line in extra)]
    command = re.search(r"sed -nE '.*' requirements.txt pyproject.toml", (ROOT / "scripts/versions.sh").read_text())[0]
    pinned = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert pinned.splitlines() == [
        re.fullmatch(r"([\w-]+)>=([\d.]+),<[\d.]+", line).expand(r"\1==\2") for line in lines
    ]


def test_help_imports_no_torch():
    files = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    runnable = [name for name in files.split() if '\nif __name__ == "__main__":' in (ROOT / name).read_text("utf-8")]
    scripts = [name.removesuffix("/__main__.py") for name in runnable if not name.startswith("tests/")]
    result = script("-c", HELPS, *scripts)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {name: [0, True, "", False] for name in scripts}


def test_an_export_without_its_extra_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = script_in_process("imagenet/export.py", tmp_path)
    assert_refused(result, "export.py: error:", "onnxruntime is not installed; run pip install -e '.[export]'")
