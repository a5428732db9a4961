"""What the project runs on, as a page of Markdown: versions, licences, sizes, import times, and the cost of --help.

    python scripts/dependencies.py docs/DEPENDENCIES.md

Versions, licences and sizes are those of the environment it runs in, which is to be one of requirements.txt alone.
"""

import ast
import json
import platform
import re
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import cli
from cli import InputError, blaming
from files import write_atomically

PROG = "dependencies.py"
ROOT = Path(__file__).resolve().parent.parent
#: of an environment, not of the project
OTHERS = {"lambda-darts", "pip", "setuptools"}
#: runs a script, which ends in SystemExit, and says on the last line of stderr what it took
PROBE = """
import atexit, json, re, runpy, sys, time

def report():
    peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]
    cost = {"cpu_seconds": time.process_time(), "peak_memory_mib": int(peak) / 1024, "torch": "torch" in sys.modules}
    print(json.dumps(cost), file=sys.stderr)

atexit.register(report)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
PAGE = """# Dependencies

Made by `python scripts/dependencies.py docs/DEPENDENCIES.md`. Machine: {machine}.

`bash scripts/versions.sh oldest` runs the tests with the lower bounds themselves, `bash scripts/versions.sh newest`
with the newest releases below the upper ones, each in an environment of its own. The upper bound is the next minor
version where one may break the project, and the next major version elsewhere; to raise one, change its line and run the
second command. `pip-audit --strict` in an environment names the releases in it that have published holes.

All licences go with use under MIT: the project ships none of these packages, and all but some of NVIDIA's are free
software. Those that torch's builds for CUDA bring are proprietary, under NVIDIA's terms; a build of torch for the CPU
does without them. certifi, hypothesis, pathspec and tqdm are under the MPL, which asks only that changes to their own
files stay under it.

## Required

Seconds: of the processor, to import it in a fresh process with all that it imports in turn, the least of {rounds}; none
where the project's own code imports nothing of it. Size: of the package's own files.

| package | bounds | installed | licence | MB | s | what for |
|---|---|---|---|---|---|---|
{required}

## Required by these

{size} MB in all; {megabytes} MB with those above.

| package | installed | licence |
|---|---|---|
{others}

## `--help`

CPU time, the median of {rounds}, which is the time that passes where nothing else runs; peak memory of the process. No
script imports torch for it.

| script | s | MiB |
|---|---|---|
{scripts}
"""


class Requirement(NamedTuple):
    """A line of requirements.txt."""

    name: str
    bounds: str  # ">=2.10,<2.15"
    reason: str


def parse_requirement(line: str) -> Requirement:
    """A package, both its bounds and its reason.

    Raises:
        ValueError: one of them is missing.
    """
    match = re.fullmatch(r"([A-Za-z0-9_-]+)(>=[\d.]+,<[\d.]+) +# (\S.*)", line)
    if match is None:
        raise ValueError(f"{line!r}; expected NAME>=LOWER,<UPPER  # what for")
    return Requirement(*match.groups())


def requirements() -> list[Requirement]:
    """What requirements.txt asks for, besides the project itself."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [parse_requirement(line) for line in lines if not line.startswith(("#", "-e ."))]


def tracked_files() -> list[Path]:
    """The repository's Python files, relative to its root."""
    command = ["git", "ls-files", "*.py"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(line) for line in listed.splitlines()]


def scripts() -> list[str]:
    """What is run as `python SCRIPT`."""
    files = [path for path in tracked_files() if path.parts[0] != "tests"]
    runnable = [path for path in files if 'if __name__ == "__main__":' in (ROOT / path).read_text("utf-8")]
    return sorted(str(path.parent if path.name == "__main__.py" else path) for path in runnable)


def imported_modules() -> dict[str, set[str]]:
    """Top-level modules that are neither Python's nor the project's -> the files that import them."""
    files = tracked_files()
    known = set(sys.stdlib_module_names) | {path.parts[0].removesuffix(".py") for path in files}
    found: dict[str, set[str]] = {}
    for path in files:
        for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            else:
                continue
            for name in {name.split(".")[0] for name in names} - known:
                found.setdefault(name, set()).add(str(path))
    return found


def modules_of(package: str) -> set[str]:
    """The top-level modules that an installed package brings; what else lies beside them is among the names too."""
    return {path.parts[0].removesuffix(".py") for path in metadata.distribution(package).files}


def licence(package: metadata.Distribution) -> str:
    """What a package's metadata says of its licence: an SPDX expression, a short name, or the name of a class."""
    about = package.metadata
    classes = [line.split(" :: ")[-1] for line in about.get_all("Classifier", []) if line.startswith("License :: ")]
    short = about.get("License", "")
    return about.get("License-Expression") or (short if "\n" not in short else "") or ", ".join(classes) or "not stated"


def megabytes(package: metadata.Distribution) -> float:
    """The size of a package's files."""
    paths = [package.locate_file(path) for path in package.files]
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def import_seconds(modules: list[str], rounds: int) -> float:
    """The processor's time to import modules in a fresh process, the least of several: other work does not count."""
    timed = f"import {', '.join(modules)}"
    program = f"import time; start = time.process_time(); {timed}; print(time.process_time() - start)"
    command = [sys.executable, "-c", program]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(rounds)]
    return min(float(run.stdout.splitlines()[-1]) for run in runs)


class HelpCost(NamedTuple):
    """What one `--help` took."""

    cpu_seconds: float
    peak_memory_mib: float
    torch: bool  # whether it was imported


def help_cost(script: str) -> HelpCost:
    """The cost of a script's --help in a process of its own, on Linux."""
    command = [sys.executable, "-c", PROBE, script, "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return HelpCost(**json.loads(result.stderr.splitlines()[-1]))


def page(rounds: int = 5) -> str:
    """The page, in Markdown."""
    direct, imported = requirements(), imported_modules()
    required, sizes = [], []
    for name, bounds, reason in direct:
        package = metadata.distribution(name)
        modules = sorted(modules_of(name) & imported.keys())
        seconds = f"{import_seconds(modules, rounds):.2f}" if modules else ""
        sizes.append(megabytes(package))
        cells = [name, bounds, package.version, licence(package), f"{sizes[-1]:.1f}", seconds, reason]
        required.append(f"| {' | '.join(cells)} |")
    known = OTHERS | {canonical(name) for name, *_ in direct}
    others = {canonical(package.name): package for package in metadata.distributions()}
    others = {name: others[name] for name in sorted(others.keys() - known)}
    helped = []
    for script in scripts():
        costs = [help_cost(script) for _ in range(rounds)]
        seconds = statistics.median(cost.cpu_seconds for cost in costs)
        helped.append(f"| `{script}` | {seconds:.2f} | {max(cost.peak_memory_mib for cost in costs):.0f} |")
    size = sum(map(megabytes, others.values()))
    return PAGE.format(
        machine=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        rounds=rounds,
        required="\n".join(required),
        size=f"{size:,.0f}",
        megabytes=f"{size + sum(sizes):,.0f}",
        others="\n".join(f"| {name} | {package.version} | {licence(package)} |" for name, package in others.items()),
        scripts="\n".join(helped),
    )


def canonical(name: str) -> str:
    """A package's name as the registry compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    parser = cli.Parser(prog=PROG, description=__doc__.splitlines()[0])
    parser.add_argument("out", help="the file to write")
    out = Path(parser.parse_args().out)
    if not out.parent.is_dir():
        raise InputError(f"out: {out}: there is no folder {out.parent}")
    content = page()
    with blaming("out"):
        write_atomically(out, content)


if __name__ == "__main__":
    cli.run(main, PROG)
