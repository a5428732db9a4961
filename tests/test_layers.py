"""Modules import only lower layers, and no imports are circular."""

import ast
import subprocess
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: the root's modules, lowest first; nasbench201/cells.py is among them because it defines cells, like genotypes.py
MODULES = ["utils", "operations", "genotypes", "spaces", "fast_edges", "model_search", "model"]
MODULES += ["regularizers", "architect", "smoothing", "selection", "nasbench201.cells"]
FIGURES = ["analysis.colors", "analysis.draw", "analysis.curves", "analysis.card"]
BELOW_SCRIPTS = ["lib", *MODULES, *FIGURES]
#: the folders and modules of each layer, and the others that they may import
LAYERS = [
    (["lib"], []),
    *(([name], ["lib", *MODULES[:number]]) for number, name in enumerate(MODULES)),
    (FIGURES, ["lib", "genotypes", "nasbench201.cells"]),
    (["search"], BELOW_SCRIPTS),
    (["train"], BELOW_SCRIPTS),
    (["nasbench201"], [*BELOW_SCRIPTS, "search", "train"]),
    (["imagenet"], [*BELOW_SCRIPTS, "search", "train"]),
    (["analysis", "scripts", "tools", "benchmarks"], [*BELOW_SCRIPTS, "search", "train", "nasbench201", "imagenet"]),
]


def imports(sources: dict[str, str]) -> dict[str, set[str]]:
    """For each module, the given modules that it imports, including imports in functions and for type checkers."""
    graph = {}
    for module, source in sources.items():
        names = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level and all(alias.name != "*" for alias in node.names), (
                    f"{module}: expected an absolute import of names"
                )
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                names |= inner & sources.keys() or {node.module}
        folders = {name.partition(".")[0] for name in sources}
        assert not names & folders - sources.keys(), f"{module}: expected the import of a module, not of a folder"
        graph[module] = names & sources.keys()
    return graph


def check(graph: dict[str, set[str]]) -> None:
    parts = {name: layer for layer, (names, _) in enumerate(LAYERS) for name in names}

    def part_of(module: str) -> str:
        return module if module in parts else module.partition(".")[0]

    wrong = []
    for module, imported in graph.items():
        names, below = LAYERS[parts[part_of(module)]]
        wrong += [f"{module} imports {other}" for other in sorted(imported) if part_of(other) not in [*names, *below]]
    assert not wrong
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' < '.join(error.args[1])}")


def test_imports_point_down_the_layers():
    command = ["git", "ls-files", "*.py", ":!tests", ":!setup.py"]
    files = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    named = {name.removesuffix(".py").replace("/", "."): (ROOT / name).read_text(encoding="utf-8") for name in files}
    check(imports(named))


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"lib.files": "def f():\n    import utils", "utils": ""}, "lib.files imports utils"),
        ({"genotypes": "from spaces import SPACES", "spaces": ""}, "genotypes imports spaces"),
        (
            {"spaces": "if TYPE_CHECKING:\n    from search import state", "search.state": ""},
            "spaces imports search.state",
        ),
        ({"search.state": "import analysis.report", "analysis.report": ""}, "search.state imports analysis.report"),
        ({"analysis.curves": "import spaces", "spaces": ""}, "analysis.curves imports spaces"),
        ({"lib.a": "from . import b", "lib.b": ""}, "lib.a: expected an absolute import of names"),
        ({"lib.a": "from utils import *", "utils": ""}, "lib.a: expected an absolute import of names"),
        ({"lib.a": "import search", "search.state": ""}, "lib.a: expected the import of a module, not of a folder"),
        ({"lib.a": "from lib import b", "lib.b": "import lib.c", "lib.c": "from lib.a import x"}, "in a circle: lib."),
    ],
)
def test_upward_and_circular_imports_are_found(sources, message):
    with pytest.raises((AssertionError, pytest.fail.Exception), match=message):
        check(imports(sources))


def test_downward_imports_are_allowed():
    below = {"nasbench201.cells": "import lib.a", "lib.a": "import torch", "genotypes": "from lib import a"}
    check(imports({"search.state": "from nasbench201 import cells\nimport genotypes, lib.a", **below}))
