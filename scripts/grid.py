"""The papers' tables as grids of runs: a YAML file of columns and methods becomes searches, retrainings and scores.

A table's file has

    title, source      what the table is, and the paper it is of
    scripts            search: and, where its cells are trained, retrain: the scripts of its steps
    search, retrain    flags of every search and of every retraining
    columns            name: {search, retrain}: flags of a column, such as a space and a data set
    methods            name: {search, retrain}: flags of a row, such as a --method
    scales             name: {seeds, search, retrain}: the size of everything, and, where it has fewer of them, its
                       columns and methods; override: {method: {search, retrain}} is for a method alone

A later one of these wins: every run's, the column's, the method's, the scale's, the scale's for the method. Light:
nothing here imports torch.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import cli
from cli import InputError, blaming

TABLES = Path(__file__).resolve().parent / "tables"

#: flags that say where something lies or what a run uses, not how it is made
PLACE = ("data", "download", "table", "device", "devices", "num_nodes", "workers")
#: flags that are the table's own business
RESERVED = {"save", "resume", "seed", "seeds", "arch", "config", "help", "print_config", "provenance"}
#: the keys of a table's file, and of its parts
KEYS = {"title", "source", "scripts", "search", "retrain", "columns", "methods", "scales"}
STEPS = ("search", "retrain")
SCALE_KEYS = {*STEPS, "seeds", "columns", "methods", "override"}


@dataclass(frozen=True)
class Step:
    """A run of one script."""

    name: str  # search or retrain
    script: str
    flags: Mapping[str, Any]
    epochs: int
    scored_by: str = ""  # the script that scores a retraining

    def made_by(self) -> dict[str, Any]:
        """What must stay the same while a run goes on."""
        return {"script": self.script, **{name: flag for name, flag in self.flags.items() if name not in PLACE}}


@dataclass(frozen=True, eq=False)
class Unit:
    """One entry of a table with one seed: a search and, where cells are trained, a retraining."""

    column: str
    method: str
    seed: int
    steps: tuple[Step, ...]

    @property
    def name(self) -> str:
        return f"{self.column} · {self.method} · seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Its place in a table's folder."""
        return Path(slug(self.column), slug(self.method), f"seed-{self.seed}")


def slug(name: str) -> str:
    """A name as part of a path: letters, digits, dots and dashes."""
    name = re.sub("-$", "-minus", name.lower()).replace("λ", "lambda").replace("ε", "epsilon")
    return re.sub(r"[^a-z0-9.]+", "-", name).strip("-.")


def arguments(flags: Mapping[str, Any]) -> list[str]:
    """Flags as a command line has them."""
    line: list[str] = []
    for name, value in flags.items():
        if isinstance(value, bool):
            line.append(f"--{name}" if value else f"--no_{name}")
        elif isinstance(value, list):
            line += [f"--{name}", *map(str, value)]
        elif value is not None:
            line += [f"--{name}", str(value)]
    return line


def _search_epochs(script: str, flags: Mapping[str, Any]) -> int:
    from search.settings import SCRIPT, check_combination

    if script.startswith("nasbench201"):
        from nasbench201.settings import SCRIPT
    settings, given = cli.parse_with_preset(SCRIPT.settings, script, "", arguments(flags), SCRIPT.preset)
    check_combination(settings, given.flags)
    return settings.epochs


def _retrain_epochs(script: str, flags: Mapping[str, Any]) -> int:
    module = import_module(script.removesuffix(".py").replace("/", "."))
    return cli.parse(module.TrainSettings, script, "", arguments(flags)).epochs


@dataclass(frozen=True)
class Script:
    """A script that a table may run."""

    epochs: Callable[[str, Mapping[str, Any]], int]  # checks its flags with its own parser, and says how many it runs
    scored_by: str = ""  # the script that scores a retraining


#: the scripts that a table may run, for each step
SCRIPTS = {
    "search": {
        "search/train_search.py": Script(_search_epochs),
        "nasbench201/train_search.py": Script(_search_epochs),
    },
    "retrain": {
        "train/train.py": Script(_retrain_epochs, scored_by="train/test.py"),
        "nasbench201/train.py": Script(_retrain_epochs, scored_by="train/test.py"),
        "imagenet/train.py": Script(_retrain_epochs, scored_by="imagenet/test.py"),
    },
}


def load_table(given: str) -> dict[str, Any]:
    """A table by its name in scripts/tables/, or from a file.

    Raises:
        InputError: there is none, or its file is not as the head of this module says.
    """
    path = Path(given) if given.endswith((".yaml", ".yml")) else TABLES / f"{given}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in TABLES.glob("*.yaml")))
        raise InputError(f"--table: {given!r}, expected one of {known}, or a file FILE.yaml")
    with blaming("--table"):
        table = cli.read_yaml(path)
    with blaming(f"--table: {path}"):
        _check(table)
    return table


def _mapping(value: Any, where: str, keys: Sequence[str] | set[str] | None = None) -> dict[str, Any]:
    """A mapping from strings, of known keys where they are given: ValueError."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{where} is {value!r}, expected names and what they stand for")
    unknown = sorted(set(value) - set(value if keys is None else keys))
    if unknown:
        raise ValueError(f"{where} has {', '.join(unknown)}; expected {', '.join(sorted(keys or ()))}")
    return value


def _flags(value: Any, where: str) -> None:
    """Raise a ValueError for anything that is not a flag of a script."""
    for name, flag in _mapping(value, where).items():
        if name in RESERVED:
            raise ValueError(f"{where} has {name}, which the table itself gives its runs")
        if not name.isidentifier():
            raise ValueError(f"{where} has {name!r}, expected the name of a flag, without dashes")
        parts = flag if isinstance(flag, list) else [flag]
        if any(isinstance(part, dict | list) for part in parts):
            raise ValueError(f"{where}: {name} is {flag!r}, expected the value of a flag")


def _check(table: Any) -> None:
    """Refuse what no grid can be made of: ValueError."""
    _mapping(table, "the table", KEYS)
    missing = sorted({"title", "scripts", "columns", "methods", "scales"} - set(table))
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")
    for step, script in _mapping(table["scripts"], "scripts", STEPS).items():
        if script not in SCRIPTS[step]:
            raise ValueError(f"scripts: {step}: {script!r}, expected {' or '.join(SCRIPTS[step])}")
    if "search" not in table["scripts"]:
        raise ValueError("scripts has no search")
    for part in STEPS:
        _flags(table.get(part, {}), part)
    for axis in ("columns", "methods"):
        slugs: dict[str, str] = {}
        for name, flags in _mapping(table[axis], axis).items():
            for step, own in _mapping(flags, f"{axis}: {name}", STEPS).items():
                _flags(own, f"{axis}: {name}: {step}")
            other = slugs.setdefault(slug(name), name)
            if not slug(name) or other != name:
                raise ValueError(
                    f"{axis}: {name!r} and {other!r} have one folder; expected letters or digits that differ"
                )
        if not table[axis]:
            raise ValueError(f"{axis} is empty")
    for name, scale in _mapping(table["scales"], "scales").items():
        _mapping(scale, f"scales: {name}", SCALE_KEYS)
        for step in STEPS:
            _flags(scale.get(step, {}), f"scales: {name}: {step}")
        for method, flags in _mapping(scale.get("override", {}), f"scales: {name}: override", table["methods"]).items():
            for step, own in _mapping(flags, f"scales: {name}: override: {method}", STEPS).items():
                _flags(own, f"scales: {name}: override: {method}: {step}")
        seeds = scale.get("seeds")
        if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
            raise ValueError(f"scales: {name}: seeds: {seeds!r}, expected how many, 1 or more")
        for axis in ("columns", "methods"):
            chosen = scale.get(axis, [])
            if not isinstance(chosen, list) or not all(name in table[axis] for name in map(str, chosen)):
                raise ValueError(f"scales: {name}: {axis}: {chosen!r}, expected a list of {', '.join(table[axis])}")


def expand(
    table: Mapping[str, Any],
    scale: str,
    seeds: int = 0,
    columns: Sequence[str] = (),
    methods: Sequence[str] = (),
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Unit]:
    """All units of a table, those with the first seed first.

    Args:
        seeds: how many, from 0; 0 for the scale's number.
        columns, methods: those to take; none for the scale's.
        overrides: flags of search and retrain that win over the table's.

    Raises:
        InputError: there is no such scale, column or method, or a script refuses a flag.
    """
    if scale not in table["scales"]:
        raise InputError(f"--scale: {scale!r}, expected one of {', '.join(table['scales'])}")
    size = table["scales"][scale]
    chosen = {}
    for axis, given in (("columns", columns), ("methods", methods)):
        unknown = sorted(set(given) - set(table[axis]))
        if unknown:
            raise InputError(f"--{axis}: {unknown[0]!r}, expected some of {', '.join(table[axis])}")
        chosen[axis] = list(dict.fromkeys(given)) or [str(name) for name in size.get(axis, [])] or list(table[axis])
    units = []
    epochs: dict[tuple[str, ...], int] = {}
    for seed, column, method in itertools.product(range(seeds or size["seeds"]), chosen["columns"], chosen["methods"]):
        parts = (
            table,
            table["columns"][column],
            table["methods"][method],
            size,
            size.get("override", {}).get(method, {}),
        )
        steps = []
        for name, script in [(name, table["scripts"][name]) for name in STEPS if name in table["scripts"]]:
            flags = {flag: value for part in parts for flag, value in part.get(name, {}).items()}
            flags |= (overrides or {}).get(name, {})
            made_by = (script, *arguments(flags))
            if made_by not in epochs:
                try:
                    epochs[made_by] = SCRIPTS[name][script].epochs(script, flags)
                except InputError as error:
                    raise InputError(f"--table, --set: {column}, {method}, {script}: {error}") from error
            scored_by = SCRIPTS[name][script].scored_by
            steps.append(Step(name, script, {**flags, "seed": seed}, epochs[made_by], scored_by))
        units.append(Unit(column, method, seed, tuple(steps)))
    return units
