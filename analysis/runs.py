"""What is in a folder of runs: every entry of a table with one seed, and runs that stand alone.

Only folders that this project wrote are read; of others, and of what is damaged, the reader is told.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from analysis.compare import grouped
from analysis.curves import Course, load_course, read_columns
from files import read_json, read_yaml
from nasbench201.cells import load_any

#: folders within a run that hold no runs
INNER = {"checkpoints", "tensorboard", "cells", "selections", "perturbation"}
#: what a finished step leaves
LEAVES = {"search": "genotype.json", "retrain": "result.json"}
DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet16_120": "ImageNet16-120"}
ACCURACY = "test accuracy"


@dataclass
class Entry:
    """A search, its retraining where there is one, and the scores of what they found.

    Attributes:
        table, column, method: where it stands; of a run that stands alone they say what it is.
        origin: the search's flags that say whose published figures are beside it: space, dataset, method.
        scores: figures in percent, and ranks, by name.
        epochs: of each step those done, and all of them.
        seconds: of each step so far.
        commands: that made it.
        eigenvalues: columns of hessian.csv.
        surface: columns of landscape.csv.
    """

    folder: Path
    table: str
    column: str
    method: str
    seed: int
    origin: dict[str, Any]
    root: Path | None = None  # the table's folder
    note: str = ""  # what its method sets otherwise than the table says
    skips: int | None = None  # skip connections of the cell found; until then of the last epoch's
    course: Course | None = None
    scores: dict[str, float] = field(default_factory=dict)
    params: int | None = None
    epochs: dict[str, tuple[int, int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    memory: float | None = None  # MiB, the most of the search
    finished: bool = False
    commands: list[str] = field(default_factory=list)
    measurements: list[str] = field(default_factory=list)  # commands of the eigenvalues and the surface
    devices: list[str] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)
    eigenvalues: np.ndarray | None = None
    surface: np.ndarray | None = None

    @property
    def pictures(self) -> dict[str, bytes]:
        """kind of cell -> its drawing, as SVG."""
        for step in ("search", "", "retrain"):
            found = sorted((self.folder / step / "cells").glob("*.svg"))
            if found:
                return {path.stem: path.read_bytes() for path in found}
        return {}


def load_entries(paths: list[Path]) -> tuple[list[Entry], list[str]]:
    """The entries in some folders, and what could not be read there.

    Raises:
        ValueError: there is none.
        OSError: a folder cannot be read.
    """
    entries: list[Entry] = []
    problems: list[str] = []
    alone: list[Entry] = []
    for folder in _folders(paths):
        try:
            if (folder / "unit.json").is_file():
                entries.append(_unit(folder))
            else:
                entry = _alone(folder)
                if entry is not None:
                    alone.append(entry)
        except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
            problems.append(f"{folder}: not read: {' '.join(str(error).split())}")
    _name(alone)
    entries += alone
    if not entries:
        problem = problems[0] if problems else f"{', '.join(map(str, paths))}: no run in it"
        raise ValueError(f"{problem}; expected run folders of this project")
    return entries, problems


def _folders(paths: list[Path]) -> Iterator[Path]:
    """Folders of units and of runs that stand alone, each once."""
    seen = set()
    for path in paths:
        for place, names, files in os.walk(path):
            folder, names[:] = Path(place), sorted(set(names) - INNER)
            if "unit.json" in files:
                names.clear()
            elif "config.yaml" not in files:
                continue
            if folder.resolve() not in seen:
                seen.add(folder.resolve())
                yield folder


def _config(run: Path) -> dict[str, Any]:
    """config.yaml of a run folder: ValueError where this project did not write it."""
    config = read_yaml(run / "config.yaml")
    if not isinstance(config, dict) or not {"command", "commit", "device"} <= set(config.get("provenance", {})):
        raise ValueError("config.yaml is none of this project's")
    return config


def _unit(folder: Path) -> Entry:
    about = read_json(folder / "unit.json")
    place = [str(about[name]) for name in ("table", "column", "method")]
    entry = Entry(folder, *place, int(about["seed"]), dict(about["published_for"]))
    entry.note = str(about.get("note", ""))
    # column, method and seed are its place in the table's folder
    entry.root = folder.resolve().parents[2] if len(folder.resolve().parents) > 2 else None
    for step in LEAVES:
        if step in about["steps"] and (folder / step / "config.yaml").is_file():
            _read_step(entry, step, folder / step)
    last = "retrain" if "retrain" in about["steps"] else "search"
    scored = not about.get("scored", True) or (folder / "score.json").is_file()
    entry.finished = scored and (folder / last / LEAVES[last]).is_file()
    if (folder / "score.json").is_file():
        score = read_json(folder / "score.json")
        entry.commands.append(str(score["command"]))
        entry.scores = _scores(score)
    return entry


def _alone(folder: Path) -> Entry | None:
    """A run of one script; None of a series of seeds, whose runs have folders of their own."""
    config = _config(folder)
    if config.get("seeds"):
        return None
    step = "retrain" if "arch" in config else "search"
    origin = {name: config.get(name, "") for name in ("space", "dataset", "method")}
    entry = Entry(folder, "Runs", "", "", int(config["seed"]), origin)
    _read_step(entry, step, folder)
    entry.finished = (folder / LEAVES[step]).is_file()
    if entry.course is not None and "table_test_accuracy" in entry.course.metrics.dtype.names:
        known = config.get("table_dataset", "auto")
        dataset = DATASETS.get(known if known != "auto" else config["dataset"].replace("-", "_"), "CIFAR-10")
        entry.scores = {f"{dataset} test": float(entry.course.metrics["table_test_accuracy"][-1])}
    return entry


def _name(alone: list[Entry]) -> None:
    """Say what runs are that no table has named."""
    searches = [entry for entry in alone if entry.course is not None]
    of_course = {id(entry.course): entry for entry in searches}
    for title, courses in grouped([entry.course for entry in searches]).items():
        for course in courses:
            entry = of_course[id(course)]
            entry.column = f"{entry.origin['space'].upper()} on {entry.origin['dataset']}"
            entry.method = title.removeprefix("Search on ").rpartition(": ")[2]
    for entry in alone:
        if not entry.method:
            config = _config(entry.folder)
            entry.column = f"{'Retraining' if 'arch' in config else 'Search'} on {config.get('dataset', 'ImageNet')}"
            entry.method = Path(str(config.get("arch", config.get("method")))).name
    taken: set[tuple[str, str, int]] = set()
    for entry in alone:  # the same search twice is two searches
        if (entry.column, entry.method, entry.seed) in taken:
            entry.method += f" ({entry.folder})"
        taken.add((entry.column, entry.method, entry.seed))


def _read_step(entry: Entry, step: str, run: Path) -> None:
    config = _config(run)
    origin = config["provenance"]
    entry.commands.append(str(origin["command"]))
    entry.devices.append(str(origin["device"]))
    entry.commits.append(str(origin["commit"]))
    metrics = (_read_search if step == "search" else _read_retraining)(entry, run, config)
    if metrics is not None:
        entry.seconds[step] = float(np.nansum(metrics["seconds"]))
    entry.epochs[step] = (0 if metrics is None else len(metrics), int(config["epochs"]))


def _read_search(entry: Entry, run: Path, config: dict[str, Any]) -> np.ndarray | None:
    """A search's course, its cell, and what was measured of it; returns metrics.csv, None before the first epoch."""
    for name, attribute, expected in (
        ("hessian.csv", "eigenvalues", {"epoch", "eigenvalue_1"}),
        ("landscape.csv", "surface", {"x", "y", "loss"}),
    ):
        if (run / name).is_file():
            columns = read_columns(run / name)
            if not expected <= {*columns.dtype.names}:
                raise ValueError(f"{name} has no {', '.join(sorted(expected - {*columns.dtype.names}))}")
            setattr(entry, attribute, columns)
            about = read_json((run / name).with_suffix(".json"))
            entry.measurements.append(str(about["command"]))
    if not (run / "metrics.csv").is_file() or not (run / "alphas.npz").is_file():
        return None
    entry.course = load_course(run, config)
    metrics = entry.course.metrics
    entry.skips = int(sum(metrics[name][-1] for name in metrics.dtype.names if name.startswith("skip_connect_")))
    if (run / LEAVES["search"]).is_file():
        cell = load_any(str(run))
        found = [edge.operation for kind in cell.kinds for edge in cell.edges(kind)]
        entry.skips = found.count("skip_connect")
    entry.memory = float(np.nanmax(metrics["peak_memory_mib"]))
    return metrics


def _read_retraining(entry: Entry, run: Path, config: dict[str, Any]) -> np.ndarray | None:
    """A retraining's result, where it has one; returns metrics.csv, None before the first epoch."""
    if (run / LEAVES["retrain"]).is_file():
        result = read_json(run / LEAVES["retrain"])
        entry.scores, entry.params = _scores(result), int(result["params"])
    return read_columns(run / "metrics.csv") if (run / "metrics.csv").is_file() else None


def _scores(score: Mapping[str, Any]) -> dict[str, float]:
    """Figures by name, in percent: of train/test.py and imagenet/test.py, or of nasbench201/table.py."""
    if "accuracies" not in score:
        names = {"accuracy": ACCURACY, "top5": "top-5 accuracy"}
        return {shown: 100 * float(score[name]) for name, shown in names.items() if name in score}
    found: dict[str, float] = {}
    for split in ("test", "valid"):
        for dataset, shown in DATASETS.items():
            rows = [row for row in score["accuracies"] if (row["dataset"], row["split"]) == (dataset, split)]
            rows = [row for row in rows if row["accuracy"] is not None]
            if rows:
                row = max(rows, key=lambda row: row["epochs"])
                name = f"{shown} {split}" + ("" if row["epochs"] == 200 else f", {row['epochs']} epochs")
                found[name] = float(row["accuracy"])
                if (dataset, split) == ("cifar10", "test") and row["rank"] is not None:
                    found["rank"] = float(row["rank"])
    return found
