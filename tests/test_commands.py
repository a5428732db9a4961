"""Every command in the README and the documentation is accepted by its script."""

import io
import json
import re
import runpy
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

import search.command_line
from lib import options
from tests.helpers import EXAMPLES, ROOT, restored_settings

DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks/README.md"]
#: makes bash print the commands that follow instead of running them; PATH is empty, so any other command fails
PRINT = r"""
set -eu
PATH=
print() { printf '%s\0' "$@"; printf '\n\0'; }
python() { print python "$@"; }
bash() { print bash "$@"; }
sbatch() { print bash "$@"; }
"""
#: commands that need no network, data set or GPU, and take less than a minute
QUICK = ["analysis/draw.py", "nasbench201/table.py query 1462", "nasbench201/table.py best"]
SLOW = ["benchmarks/low_precision.py --space nasbench201"]


def commands() -> list[list[str]]:
    """Return the words of each documented command. bash expands variables, braces and loops, and drops comments."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        inline = re.findall(r"`((?:python|bash|sbatch) \w+/[^`]*)`", text)
        program = "\n".join([PRINT, *blocks, *inline])
        result = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=False)
        assert (result.returncode, result.stderr) == (0, ""), document
        found += [words.split("\0") for words in result.stdout.split("\0\n\0")[:-1]]
    return found


ALL = {" ".join(words): words for words in commands()}
RUN = [
    pytest.param(words, id=line, marks=[pytest.mark.slow] if any(name in line for name in SLOW) else [])
    for line, words in ALL.items()
    if any(line.startswith(f"python {name}") for name in [*QUICK, *SLOW])
]


def run(path: str, arguments: list[str], folder: Path, *, parse_only: bool) -> subprocess.CompletedProcess:
    """Run a script in this process from another folder.

    Args:
        parse_only: End the script as soon as it has accepted its command line.
    """
    out, err, parsers = io.StringIO(), io.StringIO(), []

    def end_after(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def parse(*arguments, **named):
            parsers.append(name)
            value = original(*arguments, **named)
            if parsers[0] == name:  # the outermost parser, which also rejects incompatible settings
                raise SystemExit
            return value

        patch.setattr(owner, name, parse)

    with restored_settings() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr("sys.argv", [path, *arguments])
        patch.chdir(folder)
        if parse_only:
            end_after(options.Parser, "parse_args")
            end_after(options, "parse_given")
            if "--resume" not in arguments:  # the documented run does not exist
                end_after(search.command_line, "resolve")
        try:
            runpy.run_path(str(ROOT / path), run_name="__main__")
        except SystemExit as end:
            assert parsers or not parse_only or end.code
            return subprocess.CompletedProcess([path, *arguments], end.code or 0, out.getvalue(), err.getvalue())
    raise AssertionError(f"{path} ended without an exit status")


@pytest.mark.parametrize("words", [pytest.param(words, id=line) for line, words in ALL.items()])
def test_a_documented_command_is_accepted(words, tmp_path):
    program, path, *arguments = words
    text = (ROOT / path).read_text(encoding="utf-8")
    if program == "bash":
        passed = re.search(r'(?:/table\.sh" (?P<table>\w+)|"\$python" (?P<script>\w+/\w+\.py)) "\$@"', text)
        if passed is None:
            assert all(word in text for word in arguments if word.startswith("--"))
            return
        path = passed["script"] or "scripts/reproduce.py"
        arguments = arguments if passed["script"] else ["--table", passed["table"], *arguments]
    own_code = re.search(
        r"## Your own cell.*?```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    (tmp_path / "mine.py").write_text(own_code[1] + EXAMPLES["A search space"], encoding="utf-8")
    result = run(path, arguments, tmp_path, parse_only=True)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("words", RUN)
def test_a_documented_command_runs(words, tmp_path):
    _, path, *arguments = words
    result = run(path, arguments, tmp_path, parse_only=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_documents_show_the_output_of_size(tmp_path):
    text = "".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
    documented = re.findall(r"python (analysis/size\.py) ([^#\n]*?)\s*# (\{.*\})", text)
    assert len(documented) == 3
    for path, arguments, printed in documented:
        assert json.loads(run(path, arguments.split(), tmp_path, parse_only=False).stdout) == json.loads(printed)
