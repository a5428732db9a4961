"""Installation, imports at start-up, and missing optional packages."""

import os
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from sysconfig import get_path

import pytest

from tests.helpers import ROOT, assert_rejected, script, script_in_process

#: runs --help of scripts; fails if one prints no usage or imports torch
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

#: imports modules and prints their names and files; prints only the name of a missing module
IMPORTS = """
import importlib, sys

for name in sys.argv[1:]:
    try:
        print(name, importlib.import_module(name).__file__)
    except ModuleNotFoundError:
        print(name)
"""


def tracked(*patterns: str) -> list[str]:
    command = ["git", "ls-files", *patterns]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


def test_every_module_except_tests_and_scripts_is_installed():
    paths = [Path(name) for name in tracked("*.py")]
    installed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert set(installed["py-modules"]) == {path.stem for path in paths if len(path.parts) == 1} - {"setup"}
    assert set(installed["packages"]) == {path.parts[0] for path in paths if len(path.parts) > 1} - {"tests", "scripts"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run python in a copy of the checkout. Its environment has this one's packages, but not the project."""
    place = tmp_path_factory.mktemp("installed")
    for name in tracked():
        (place / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place / "checkout" / name)
    venv.create(place / "environment")
    packages = Path(get_path("purelib", vars={"base": str(place / "environment")}))
    (packages / "packages.pth").write_text(f"{get_path('purelib')}\n{get_path('platlib')}\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*arguments: object, cwd: Path = place / "checkout") -> subprocess.CompletedProcess:
        command = [place / "environment/bin/python", *arguments]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)

    return run


PIP = ("-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index")


def test_an_editable_install_makes_only_the_modules_of_the_project_importable(run, tmp_path):
    result = run(*PIP, "-r", "requirements.txt")  # ends in -e .
    assert result.returncode == 0, result.stderr
    names = ["lib.cli", "search.settings", "genotypes", "tests", "scripts", "setup"]
    *found, tests, scripts, setup = run("-c", IMPORTS, *names, cwd=tmp_path).stdout.splitlines()
    assert all("/checkout/" in line for line in found) and len(found) == 3
    assert [tests, scripts, setup] == ["tests", "scripts", "setup"]


def test_an_install_that_is_not_editable_fails_and_says_how_to_install(run):
    result = run(*PIP, ".")
    assert result.returncode == 1 and "install it with: pip install -e ." in result.stderr


def test_help_does_not_import_torch():
    runnable = [name for name in tracked("*.py") if '\nif __name__ == "__main__":' in (ROOT / name).read_text("utf-8")]
    scripts = [name for name in runnable if not name.startswith("tests/")]
    result = script("-c", HELPS, *scripts)
    assert len(scripts) > 20 and (result.returncode, result.stderr) == (0, "")


def test_an_export_without_its_extra_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = script_in_process("train/export.py", tmp_path)
    assert_rejected(result, "export.py: error:", "onnxruntime is not installed; run pip install -e '.[export]'")
