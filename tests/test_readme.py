"""What the README says is so."""

import json
import re
import shlex

import numpy as np

from regularizers import REGULARIZERS
from tests.helpers import ROOT, script_in_process, without_figures

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_regularizer_of_the_readme_is_searched_with(tmp_path, monkeypatch):
    monkeypatch.setitem(REGULARIZERS, "balance", None)  # so that it goes again
    example = re.search(r"## Add a regularizer.*?```python\n(.*?)```", README, re.DOTALL).group(1)
    program = tmp_path / "balance.py"
    program.write_text(f"{example}\nfrom search.train_search import main\n\nmain()\n")
    run = tmp_path / "run"
    flags = "--dataset digits --images 64 --space s2 --layers 4 --init_channels 2 --batch_size 30 --epochs 2"
    with without_figures():
        result = script_in_process(program, *flags.split(), "--reg", "balance", "--derivatives", "exact", "--save", run)
    assert result.returncode == 0, result.stderr
    rows = np.genfromtxt(run / "metrics.csv", delimiter=",", names=True)
    assert rows["regularizer_gradient_norm"][1] > 0


def test_the_sizes_of_the_readme_are_printed():
    command, printed = re.search(r"python (analysis/size\.py [^#]*?)\s*# (\{.*\})", README).groups()
    assert json.loads(script_in_process(*shlex.split(command)).stdout) == json.loads(printed)


def test_every_flag_picture_and_file_of_the_readme_exists():
    commands = re.findall(r"^(?:python|bash) (\w+/(?!table)\S+\.(?:py|sh)) (.*)$", README, re.MULTILINE)
    assert len(commands) >= 11
    for name, arguments in commands:
        path = ROOT / name
        if path.suffix == ".sh":
            if "table.sh" not in path.read_text(encoding="utf-8"):
                continue
            name = "scripts/reproduce.py"
        flags = script_in_process(name, "--help").stdout
        for flag in re.findall(r"--\w+", arguments.partition("#")[0]):
            assert flag in flags, (name, flag)
    for picture in re.findall(r"\((docs/[^\s)]+)\)", README):
        assert (ROOT / picture).is_file(), picture
    for path in re.findall(r"`([\w/]+\.(?:py|json)|\w+/)`", README.split("## The repository")[1]):
        assert (ROOT / path).exists() or any(ROOT.glob(f"*/{path}")), path
