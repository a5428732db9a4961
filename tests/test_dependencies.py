"""What the project requires: bounded, explained, used, and not loaded before it is needed."""

import json
import re
import sys

import pytest

from scripts.dependencies import help_cost, imported_modules, modules_of, parse_requirement, requirements, scripts
from tests.helpers import ROOT, assert_refused, script, script_in_process

#: required and not imported: torch's exporter to ONNX imports the one, scripts/test.sh runs the others
UNIMPORTED = {"onnxscript", "pytest-xdist", "ruff", "mypy"}
#: imported and not required: only type checkers import it
OPTIONAL = {"_typeshed"}
#: runs --help of the scripts it is given one after another
HELPS = """
import contextlib, io, json, re, runpy, sys, time

def peak():
    # not of resource.getrusage, where that of the process that starts this one counts too
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

found = {}
for script in sys.argv[1:]:
    out, err, begun, status = io.StringIO(), io.StringIO(), time.process_time(), 0
    sys.argv = [script, "--help"]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
    found[script] = {
        "status": status,
        "stdout": out.getvalue(),
        "stderr": err.getvalue(),
        "torch": "torch" in sys.modules,
        "cpu_seconds": time.process_time() - begun,
        "peak_memory_mib": peak() if sys.platform == "linux" else 0,
    }
print(json.dumps(found))
"""


def test_every_requirement_has_both_bounds_and_a_reason():
    found = requirements()
    assert {"torch", "numpy", "nas-bench-201"} <= {requirement.name for requirement in found}
    for _, bounds, _ in found:
        lower, upper = ([int(part) for part in bound.split(".")] for bound in re.findall(r"[\d.]+", bounds))
        assert lower < upper, bounds


@pytest.mark.parametrize(
    "line", ["torch>=2.10  # networks", "torch<2.15  # networks", "torch>=2.10,<2.15", "torch>=2.10,<2.15  #", "torch"]
)
def test_a_requirement_without_bound_or_reason_is_refused(line):
    with pytest.raises(ValueError, match=re.escape(repr(line))):
        parse_requirement(line)


def test_what_is_imported_is_required_and_what_is_required_is_used():
    imported = imported_modules()
    assert {"torch", "PIL", "nas_201_api", "sklearn"} <= imported.keys()
    brought = {requirement.name: modules_of(requirement.name) for requirement in requirements()}
    for module, files in imported.items():
        if module in OPTIONAL:
            continue
        assert any(module in modules for modules in brought.values()), (module, files)
    assert {name for name, modules in brought.items() if not modules & imported.keys()} == UNIMPORTED


def test_the_lower_bounds_are_what_the_oldest_environment_installs():
    program = re.search(r"sed -nE '(.*)' requirements.txt", (ROOT / "scripts/versions.sh").read_text()).group(1)
    pattern, replacement = re.fullmatch(r"s/(.*)/(.*)/p", program).groups()
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pinned = [re.sub(pattern, replacement, line) for line in lines if re.search(pattern, line)]
    expected = [f"{name}=={re.match('>=([^,]+)', bounds).group(1)}" for name, bounds, _ in requirements()]
    assert pinned == expected


def test_the_page_of_dependencies_is_that_of_the_requirements():
    page = (ROOT / "docs/DEPENDENCIES.md").read_text(encoding="utf-8")
    rows = [re.split(r" \| ", line.strip("| ")) for line in page.splitlines() if ",<" in line]
    assert [(row[0], row[1], row[-1]) for row in rows] == requirements()
    assert re.findall(r"^\| `(\S+)` \|", page, re.MULTILINE) == scripts()
    mozillas = sorted(re.findall(r"^\| (\S+) \|.*(?:MPL|Mozilla)", page, re.MULTILINE))
    assert f"{', '.join(mozillas[:-1])} and {mozillas[-1]} are under the MPL" in page


def test_a_page_into_no_folder_is_refused(tmp_path):
    assert_refused(script_in_process("scripts/dependencies.py", tmp_path / "none/page.md"), "out", "none", "no folder")


@pytest.fixture(scope="module")
def helps() -> dict[str, dict]:
    """What each script says to --help and what that costs, all in one process without torch."""
    result = script("-c", HELPS, *scripts())
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_help_is_all_that_is_said(helps):
    assert len(helps) >= 30
    for command, said in helps.items():
        assert said["status"] == 0 and "usage:" in said["stdout"] and not said["stderr"], command


def test_help_imports_no_torch_and_costs_little(helps):
    """torch alone takes 3 seconds and 500 MiB. What draws needs numpy and matplotlib: 71 MiB."""
    for command, cost in helps.items():
        assert not cost["torch"], command
        assert cost["cpu_seconds"] < 4, command
        assert cost["peak_memory_mib"] < 150, command


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from Linux's /proc")
def test_the_cost_of_help_is_that_of_a_process_of_its_own():
    cost = help_cost("analysis/card.py")
    assert not cost.torch
    assert 0 < cost.cpu_seconds < 4
    assert 10 < cost.peak_memory_mib < 150
