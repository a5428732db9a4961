"""Scripts without packages that they need only later, or not at all."""

import subprocess
import sys

from tests.helpers import ROOT, assert_refused, script, script_in_process

#: runs --help of scripts; fails where one prints no usage or imports torch
HELPS = """
import contextlib, io, runpy, sys

for script in sys.argv[1:]:
    sys.argv = [script, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            assert not end.code, script
    assert "usage:" in out.getvalue() and "torch" not in sys.modules, script
"""


def test_help_imports_no_torch():
    files = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    runnable = [name for name in files.split() if '\nif __name__ == "__main__":' in (ROOT / name).read_text("utf-8")]
    scripts = [name.removesuffix("/__main__.py") for name in runnable if not name.startswith("tests/")]
    result = script("-c", HELPS, *scripts)
    assert len(scripts) > 20 and (result.returncode, result.stderr) == (0, "")


def test_an_export_without_its_extra_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = script_in_process("imagenet/export.py", tmp_path)
    assert_refused(result, "export.py: error:", "onnxruntime is not installed; run pip install -e '.[export]'")
