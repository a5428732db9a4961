"""Wrong invocations of every script: one line on stderr, exit status 2, and no files written.

An entry of invocations.txt is a command after `$`, its lines on stdout after `>`, and its line on stderr, which may be
wrapped. `...` in the latter stands for any text. $tmp is the folder that the fixture `place` fills. Commands after
`shell$` run in a shell, the others in this process. `slow ` before these marks a slow test.
"""

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from genotypes import CELLS
from lib.files import LOCK
from nasbench201.cells import all_cells
from nasbench201.settings import SearchSettings201
from nasbench201.sources import build
from search.settings import SCRIPT, SearchSettings
from tests.helpers import ROOT, TABLE, script_in_process

CELL = CELLS["DARTS_V2"].to_json()


def invocations() -> list:
    """The parameters of the entries: run in a shell or not, the command, its stdout and its line on stderr."""
    text = Path(__file__).with_name("invocations.txt").read_text(encoding="utf-8")
    found = []
    entries = re.split(r"^(slow )?(shell)?\$ ", text, flags=re.MULTILINE)[1:]
    for slow, shell, entry in zip(*[iter(entries)] * 3, strict=True):
        command, *lines = (line.strip() for line in entry.partition("\n#")[0].splitlines())
        printed = "".join(f"{line[2:]}\n" for line in lines if line.startswith("> "))
        answer = " ".join(line for line in lines if line and not line.startswith("> "))
        marks = [pytest.mark.slow] if slow else []
        found.append(pytest.param(bool(shell), command, printed, answer, id=command, marks=marks))
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """The folder $tmp of invocations.txt, with the faulty files that its commands read."""
    folder = tmp_path_factory.mktemp("place")

    def write(name: str, content: str | bytes | dict | list) -> Path:
        """Write bytes or text, or a dict or list as JSON or YAML by the suffix of the name."""
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict | list):
            content = json.dumps(content) if path.suffix == ".json" else yaml.safe_dump(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    for suffix in ("json", "yaml", "csv"):
        write(f"empty.{suffix}", b"")
    for suffix in ("yaml", "csv", "csv.gz", "pth", "ckpt", "html", "png"):
        write(f"junk.{suffix}", bytes(range(256)))
    torch.save({"state_dict": {}}, folder / "foreign.ckpt")
    write("latin1.json", "{é".encode("latin1"))
    (folder / "folder").mkdir()
    write("mine/thesis.tex", "mine")

    parts = json.loads(CELL)
    write("cells/operation.json", CELL.replace("dil_conv_3x3", "dil_conv_9x9"))
    write("cells/source.json", {**parts, "normal": [["skip_connect", 0], ["skip_connect", 2]]})
    write("cells/odd.json", {**parts, "reduce": parts["reduce"][:-1]})
    write("cells/float.json", {**parts, "normal": [["skip_connect", 0.5], ["skip_connect", 1]]})
    write("cells/text.json", {**parts, "normal": "sep_conv_3x3"})
    write("cells/lacking.json", {"normal": parts["normal"]})
    write("cells/more.json", {**parts, "\x1b[31mauthor\n": "me"})
    write("cells/concat.json", {**parts, "reduce_concat": [2, 9]})
    write("cells/list.json", [1, 2])
    write("cells/expression.txt", "Genotype(normal=__import__('os').mkdir('written'))")
    write("cells/several.py", "A = Genotype(normal=[])\nB = Genotype(reduce=[])\n")
    write("cells/201.json", {"arch": "|nor_conv_5x5~0|+|none~0|none~1|+|none~0|none~1|none~2|"})

    write("configs/unknown.yaml", "epochs: 3\nlamda: 1\n")
    write("configs/type.yaml", "epochs: many\n")
    write("configs/object.yaml", "space: !!python/object/apply:os.mkdir [written]\n")
    write("configs/list.yaml", "- epochs\n- layers\n")
    write("configs/broken.yaml", "epochs: [3\nlayers: 4\n")
    write("configs/idarts.yaml", asdict(SCRIPT.settings_of("idarts")))

    digits = {**asdict(SearchSettings()), "dataset": "digits", "space": "s2", "layers": 4, "init_channels": 2}
    write("search/config.yaml", digits)
    write("older/config.yaml", {name: value for name, value in digits.items() if name != "cuda_graphs"})
    write("gates/config.yaml", {**digits, "relaxation": "sigmoid"})
    write("search201/config.yaml", {**asdict(SearchSettings201()), "dataset": "digits"})
    write("retrained/config.yaml", "arch: DARTS_V2\n")
    write("space/config.yaml", {**digits, "space": "s9"})
    write("cut/config.yaml", digits)
    write(f"cut/{LOCK}", "")
    write("cut/checkpoints/epoch_00001.ckpt", b"\x10" * 100)
    write("broken/config.yaml", "not: [yaml")
    write("list/config.yaml", "[1, 2]")
    write("measured/config.yaml", digits)
    write("measured/hessian.csv", "epoch,eigenvalue_1,loss\n")
    write("selected/config.yaml", digits)
    write("selected/selections/argmax/genotype.json", CELL)

    def images(name: str, classes: str, splits: str) -> None:
        for split, label, number in itertools.product(splits.split(), classes.split(), range(2)):
            path = folder / name / split / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, 0)).save(path)

    images("images/whole", "cat dog", "train test val")
    images("images/one", "cat", "train test val")
    images("images/untested", "cat dog", "train")
    images("images/cut", "cat dog", "train test")
    images("images/junk", "cat dog", "train test")
    cut = folder / "images/cut/test/dog/1.png"
    cut.write_bytes(cut.read_bytes()[:40])
    write("images/junk/train/cat/0.png", bytes(range(256)))

    archs = [cell.arch for cell in all_cells()][:3]
    table = write("table.csv", "arch,cifar10_test\n" + "".join(f"{arch},{60 + i}\n" for i, arch in enumerate(archs)))
    build([table], folder / "table.npz", [200])
    write("cut.npz", (folder / "table.npz").read_bytes()[:-10])
    write("table.txt", "arch")
    write("tables/header.csv", "cell,cifar10_test\n")
    write("tables/column.csv", f"arch,mnist_test\n{archs[0]},60\n")
    for name, accuracy in (("nan", "nan"), ("word", "high"), ("share", "100.5")):
        write(f"tables/{name}.csv", f"arch,cifar10_test\n{archs[0]},{accuracy}\n")
    write("tables/twice.csv", f"arch,cifar10_test\n{archs[0]},60\n{archs[0]},60\n")
    write("tables/cell.csv", "arch,cifar10_test\n|none~0|,60\n")

    write("grids/digits.yaml", TABLE)
    write("grids/script.yaml", {**TABLE, "scripts": {"search": "rm.py"}})
    write("grids/untitled.yaml", "{}")
    write("grids/list.yaml", "- a\n- b\n")
    write("other/table.yaml", "scale: tiny\ntable: {title: Another}\n")
    write("halves.json", {"train": ["int", ["0", "1"]]})

    write("raw/val/ILSVRC2012_val_00000001.JPEG", b"\1")
    write("truth/kaggle.csv", "ImageId,PredictionString\nILSVRC2012_val_00000002,n01440764 1 2 3 4\n")
    write("truth/header.csv", "picture,class\n")
    write("truth/class.csv", "ImageId,PredictionString\nILSVRC2012_val_00000001,cat 1 2 3 4\n")
    write("truth/devkit.txt", "1\n")
    write("devkit/truth.txt", "1\n")
    write("devkit/meta.mat", bytes(range(256)))
    return folder


def in_a_shell(command: str, place: Path) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {"PATH": path, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "tmp": str(place)}
    line, options = ["bash", "-c", command], {"capture_output": True, "text": True, "timeout": 600}
    return subprocess.run(line, cwd=ROOT, env={**os.environ, **own}, **options)


def in_this_process(command: str, place: Path) -> subprocess.CompletedProcess:
    python, *words = shlex.split(command)
    assert python == "python"
    return script_in_process(*(word.replace("$tmp", str(place)) for word in words))


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and modification time of every file and folder, except caches, hidden folders and lock files."""
    found = {}
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__pycache__"))]
        for name in {*folders, *files} - {LOCK}:
            if name.startswith(".coverage."):  # tools/coverage.sh writes it
                continue
            about = os.lstat(os.path.join(parent, name))
            found[os.path.join(parent, name)] = (about.st_size if name in files else 0, about.st_mtime_ns)
    return found


@pytest.mark.parametrize(("shell", "command", "printed", "answer"), invocations())
def test_a_wrong_invocation_gives_a_one_line_error_and_writes_nothing(place, capfd, shell, command, printed, answer):
    before = contents(place), contents(ROOT)
    result = (in_a_shell if shell else in_this_process)(command, place)
    expected = answer.replace("$tmp", str(place)) + "\n"
    said = result.stderr
    assert said == expected or re.fullmatch(re.escape(expected).replace(r"\.\.\.", ".+"), said), said
    assert (result.returncode, result.stdout) == (2, printed)
    assert capfd.readouterr() == ("", "")  # libraries write to the file descriptors directly
    assert (contents(place), contents(ROOT)) == before
