"""Tables of runs: a YAML file of columns and methods becomes searches, retrainings and scores.

The file of a table has

    title, source      the table and its paper
    scripts            {search, retrain}: the scripts; without retrain, the cells are not retrained
    search, retrain    flags of all searches and of all retrainings
    columns            name: {search, retrain}: flags of a column, such as a space and a data set
    methods            name: {search, retrain}: flags of a row, such as a method; optionally columns:
                       {column: {search, retrain}}, flags of this row in one column
    scales             name: {seeds, search, retrain}: the size of the runs; optionally columns and methods, to run
                       only these, and override: {method: {search, retrain}}, flags of one method

Flags are merged in this order, and later ones override earlier ones: all runs, column, method, method in the column,
scale, override of the scale. Nothing here imports torch.
"""

import itertools
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.cli import InputError, blaming
from lib.files import read_yaml

TABLES = Path(__file__).resolve().parent.parent / "scripts" / "tables"
#: the scripts of each step, and the script that scores a retraining
SCRIPTS = {
    "search": {"search/train_search.py": "", "nasbench201/train_search.py": ""},
    "retrain": {
        "train/train.py": "train/test.py",
        "nasbench201/train.py": "nasbench201/test.py",
        "imagenet/train.py": "imagenet/test.py",
    },
}
#: flags that may change when a run resumes
MOVABLE = ("data", "table", "device", "devices", "num_nodes")
#: flags that the file of a table and --set must not contain
RESERVED = {"save", "resume", "seed", "seeds", "arch", "config", "help", "print_config", "plugin", "provenance"}
#: the structure of a table's file; the key "" stands for any name
FLAGS = {"": bool | int | float | str}
RUNS: dict[str, Any] = {"search": FLAGS, "retrain": FLAGS}
FORM = {
    "title": str,
    "source": str,
    "scripts": {"search": str, "retrain": str},
    **RUNS,
    "columns": {"": RUNS},
    "methods": {"": {**RUNS, "columns": {"": RUNS}}},
    "scales": {"": {**RUNS, "seeds": int, "columns": list, "methods": list, "override": {"": RUNS}}},
}


@dataclass(frozen=True, eq=False)
class Unit:
    """One entry of a table with one seed: a search and, if the table retrains cells, a retraining."""

    column: str
    method: str
    seed: int
    steps: Mapping[str, Mapping[str, Any]]  # flags of search and retrain
    published_for: Mapping[str, Any]  # space, dataset and method of the published figures; may be empty
    note: str  # flags that the scale overrides for this method

    @property
    def name(self) -> str:
        return f"{self.column} · {self.method} · seed {self.seed}"

    @property
    def folder(self) -> Path:
        """The path below the folder of the table."""
        return Path(slug(self.column), slug(self.method), f"seed-{self.seed}")


def slug(name: str) -> str:
    """Convert a name to a part of a path: letters, digits, dots and dashes."""
    name = re.sub("-$", "-minus", name.lower()).replace("λ", "lambda").replace("ε", "epsilon")
    return re.sub(r"[^a-z0-9.]+", "-", name).strip("-.")


def arguments(flags: Mapping[str, Any]) -> list[str]:
    """Flags as the arguments of a command line."""
    line: list[str] = []
    for name, value in flags.items():
        line += [f"--{name}" if value else f"--no_{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
    return line


def check(value: Any, form: Any, where: str) -> None:
    """Check the structure of a part of a table, or of --set.

    Raises:
        ValueError: The structure differs from `form`. The message begins with `where`.
    """
    shown = reprlib.repr(value)
    if not isinstance(form, dict):
        if not isinstance(value, form) or (form is int and value is True):
            names = {str: "text", int: "a number", list: "a list"}
            raise ValueError(f"{where}: {shown}, expected {names.get(form, 'a number, a word, true or false')}")
        if isinstance(value, str) and (value.startswith("-") or not value.isprintable()):
            raise ValueError(f"{where}: {shown}, expected a line of text that does not begin with -")
        return
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{where}: {shown}, expected names and their values")
    for name, part in value.items():
        if form is FLAGS and name in RESERVED:
            raise ValueError(f"{where}: {name}: this flag cannot be set in a table or with --set")
        if form is FLAGS and not name.isidentifier():
            raise ValueError(f"{where}: {name!r}, expected the name of a flag, without dashes")
        if name not in form and "" not in form:
            raise ValueError(f"{where}: {name!r}, expected {', '.join(form)}")
        check(part, form.get(name, form.get("")), f"{where}: {name}")


def load_table(given: str) -> dict[str, Any]:
    """Load a table by its name in scripts/tables/, or from a file.

    Raises:
        InputError: There is no such table, or its file does not have the form above.
    """
    path = Path(given) if given.endswith((".yaml", ".yml")) else TABLES / f"{given}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in TABLES.glob("*.yaml")))
        raise InputError(f"--table: {given!r}, expected one of {known}, or a file FILE.yaml")
    with blaming("--table"):
        table = read_yaml(path)
    with blaming(f"--table: {path}"):
        _check_table(table)
    return table


def _check_table(table: Any) -> None:
    check(table, FORM, "the table")
    missing = [name for name in ("title", "scripts", "columns", "methods", "scales") if not table.get(name)]
    if missing or "search" not in table["scripts"]:
        raise ValueError(f"the table lacks {', '.join(missing) or 'a search script'}")
    for step, script in table["scripts"].items():
        if script not in SCRIPTS[step]:
            raise ValueError(f"scripts: {step}: {script!r}, expected {' or '.join(SCRIPTS[step])}")
    for axis in ("columns", "methods"):
        folders = [slug(name) for name in table[axis]]
        if len({*folders, ""}) <= len(folders):
            raise ValueError(f"{axis}: {', '.join(table[axis])}: these names do not give distinct folders; rename one")
    for name, row in table["methods"].items():
        _check_names(table, "columns", row.get("columns", ()), f"methods: {name}: columns")
    for name, scale in table["scales"].items():
        if scale.get("seeds", 0) < 1:
            raise ValueError(f"scales: {name}: seeds: {scale.get('seeds')!r}, expected 1 or more")
        for axis, names in (("columns", "columns"), ("methods", "methods"), ("override", "methods")):
            _check_names(table, names, scale.get(axis, ()), f"scales: {name}: {axis}")


def _check_names(table: Mapping[str, Any], axis: str, names: Iterable[Any], where: str) -> None:
    for name in names:
        if name not in [*table[axis]]:  # a list: the name may be of any type
            raise ValueError(f"{where}: {name!r}, expected some of {', '.join(table[axis])}")


def _merged(step: str, *parts: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of a step; later parts override earlier ones."""
    return {name: value for part in parts for name, value in part.get(step, {}).items()}


def _chosen(table: Mapping[str, Any], size: Mapping[str, Any], axis: str, given: Sequence[str]) -> list[str]:
    """The columns or rows to run. A row is chosen by its name in the table or by its --method."""
    names = {name: {name} for name in table[axis]}
    if axis == "methods":
        for name, row in table["methods"].items():
            names[name].add(str(_merged("search", table, row).get("method", "lambda-darts")))
    known = set().union(*names.values())
    for name in given:
        if name not in known:
            raise InputError(f"--{axis}: {name!r}, expected some of {', '.join(sorted(known))}")
    return [name for name in names if names[name] & {*(given or size.get(axis) or names)}]


def expand(
    table: Mapping[str, Any],
    scale: str,
    seeds: int = 0,
    columns: Sequence[str] = (),
    methods: Sequence[str] = (),
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    check_line: Callable[[str, list[str]], object] = lambda script, line: None,
) -> list[Unit]:
    """All entries of a table, ordered by seed.

    Args:
        seeds: Number of seeds, starting with seed 0. 0 uses the scale's number.
        columns, methods: The columns and rows to run, by default those of the scale. A row is chosen by its name in
            the table or by its --method.
        overrides: Flags of search and retrain that override the table's.
        check_line: Parses the command line of a script, and raises an InputError if it is wrong.

    Raises:
        InputError: There is no such scale, column or method, or a script rejects a flag.
    """
    if scale not in table["scales"]:
        raise InputError(f"--scale: {scale!r}, expected one of {', '.join(table['scales'])}")
    size = table["scales"][scale]
    chosen = (_chosen(table, size, "columns", columns), _chosen(table, size, "methods", methods))
    checked, units = set(), []
    for seed, column, method in itertools.product(range(seeds or size["seeds"]), *chosen):
        own = size.get("override", {}).get(method, {})
        row = table["methods"][method]
        named = (table, table["columns"][column], row, row.get("columns", {}).get(column, {}))
        steps = {}
        for step, script in sorted(table["scripts"].items(), reverse=True):  # the search first
            flags = _merged(step, *named, size, own, overrides or {})
            line = (script, *arguments(flags))
            if line not in checked:
                try:
                    check_line(script, [*line[1:]])
                except InputError as error:
                    raise InputError(f"--table, --set: {column}, {method}, {script}: {error}") from error
            checked.add(line)
            steps[step] = {**flags, "seed": seed}
        published = published_for(_merged("search", *named), steps, table["scripts"])
        note = "; ".join(f"{step}: {' '.join(arguments(flags))}" for step, flags in own.items())
        units.append(Unit(column, method, seed, steps, published, note))
    return units


def published_for(
    named: Mapping[str, Any], steps: Mapping[str, Mapping[str, Any]], scripts: Mapping[str, str]
) -> dict[str, Any]:
    """The space, data set and method whose published figures apply; empty for a variant of a method.

    Args:
        named: The table's flags of the search, without those of the scale and --set. If the runs use a folder of
            images, they name its data set.
    """
    if not set(named) <= {"space", "dataset", "method"}:
        return {}
    search, last = steps["search"], steps.get("retrain", steps["search"])
    own = {"dataset": "cifar10", "space": "s5", "method": "lambda-darts", **search}
    dataset = named.get("dataset", "cifar10") if own["dataset"] == "folder" else own["dataset"]
    if scripts.get("retrain") == "imagenet/train.py":
        dataset = "imagenet" if last.get("classes") == 1000 else "other"
    elif last.get("dataset", "cifar10") != own["dataset"]:
        dataset = "other"
    space = "nasbench201" if scripts["search"].startswith("nasbench201") else own["space"]
    return {"space": space, "dataset": dataset, "method": own["method"]}
