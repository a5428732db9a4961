"""The runs in some folders: every entry of a table with one seed, and runs that stand alone.

Only folders that this project wrote are read, and only regular files in them: a link could bring any file of the
machine onto the page. The page lists the folders that are not read.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from analysis.compare import grouped
from analysis.curves import Course, load_course, read_columns
from lib.files import is_finished, read_json, read_yaml
from nasbench201.cells import load_any

if TYPE_CHECKING:
    import pandas as pd

#: folders within a run that hold no runs
INNER = {"checkpoints", "tensorboard", "cells", "selections", "perturbation"}
Step = Literal["search", "retrain"]
STEPS: tuple[Step, ...] = ("search", "retrain")
DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet16_120": "ImageNet16-120"}
ACCURACY = "test accuracy"


@dataclass
class Entry:
    """A search, its retraining where there is one, and the scores of the network found.

    Attributes:
        table, column, method: its place; of a run that stands alone, its data and settings.
        origin: the search's flags by which published figures are looked up: space, dataset, method.
        scores: accuracies in percent, and ranks, by name.
        figures: skips, alignment, params, memory (MiB), and the seconds and epochs of each step: `search`,
            `search_epochs`, `retrain`.
        progress: of each step, the epochs done and all of them.
    """

    folder: Path
    table: str
    column: str
    method: str
    seed: int
    origin: dict[str, Any]
    root: Path | None = None  # the table's folder
    note: str = ""  # settings in which its method differs from the table's
    course: Course | None = None
    scores: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    progress: dict[str, tuple[int, int]] = field(default_factory=dict)
    finished: bool = False
    commands: list[str] = field(default_factory=list)
    measurements: list[str] = field(default_factory=list)  # commands of the eigenvalues and the surface
    devices: set[str] = field(default_factory=set)
    commits: set[str] = field(default_factory=set)
    eigenvalues: "pd.DataFrame | None" = None  # hessian.csv
    surface: "pd.DataFrame | None" = None  # landscape.csv
    pictures: dict[str, bytes] = field(default_factory=dict)  # kind of cell -> its drawing, as SVG


def load_entries(paths: list[Path]) -> tuple[list[Entry], list[str]]:
    """The entries in some folders, and the reasons why others could not be read.

    Raises:
        ValueError: There is no entry.
        OSError: A folder cannot be read.
    """
    units: list[Entry] = []
    alone: list[Entry] = []
    problems: list[str] = []
    for folder in _folders(paths):
        try:
            _check_regular(folder)
            if (folder / "unit.json").is_file():
                units.append(_unit(folder))
            elif not _config(folder).get("seeds"):  # the runs of a series of seeds have folders of their own
                alone.append(_alone(folder))
        except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, OSError, RecursionError) as error:
            problems.append(f"{folder}: not read: {' '.join(str(error).split())}")
    _name(alone)
    if not units and not alone:
        problem = problems[0] if problems else f"{', '.join(map(str, paths))}: no run in it"
        raise ValueError(f"{problem}; expected run folders of this project")
    return units + alone, problems


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


def _check_regular(folder: Path) -> None:
    """Reject links and special files where the report reads: ValueError."""
    for part in (folder, *(folder / step for step in STEPS)):
        for path in (*part.glob("*"), *part.glob("cells/*")):
            if path.name in INNER - {"cells"}:
                continue
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise ValueError(f"{path.relative_to(folder)} is a link or a special file; expected a regular file")


def _config(run: Path) -> dict[str, Any]:
    """config.yaml of a run folder: ValueError where this project did not write it."""
    config = read_yaml(run / "config.yaml")
    if not isinstance(config, dict) or not {"command", "commit", "device"} <= set(config.get("provenance", {})):
        raise ValueError("config.yaml was not written by this project")
    return config


def _unit(folder: Path) -> Entry:
    about = read_json(folder / "unit.json")
    place = [str(about[name]) for name in ("table", "column", "method")]
    entry = Entry(folder, *place, int(about["seed"]), dict(about["published_for"]), note=str(about.get("note", "")))
    # column, method and seed are its place in the table's folder
    entry.root = folder.resolve().parents[2] if len(folder.resolve().parents) > 2 else None
    for step in STEPS:
        if step in about["steps"] and (folder / step / "config.yaml").is_file():
            _read_step(entry, step, folder / step)
    last: Step = "retrain" if "retrain" in about["steps"] else "search"
    scored = (folder / "score.json").is_file()
    entry.finished = (scored or not about.get("scored", True)) and is_finished(folder / last, last)
    if scored:
        score = read_json(folder / "score.json")
        entry.commands.append(str(score["command"]))
        entry.scores = _scores(score)
    return entry


def _alone(folder: Path) -> Entry:
    """A run of one script."""
    config = _config(folder)
    step: Step = "retrain" if "arch" in config else "search"
    origin = {name: config.get(name, "") for name in ("space", "dataset", "method")}
    column = f"{'Retraining' if 'arch' in config else 'Search'} on {config.get('dataset', 'ImageNet')}"
    entry = Entry(folder, "Runs", column, Path(str(config.get("arch", ""))).name, int(config["seed"]), origin)
    _read_step(entry, step, folder)
    entry.finished = is_finished(folder, step)
    if entry.course is not None and "table_test_accuracy" in entry.course.metrics:
        known = config.get("table_dataset", "auto")
        dataset = DATASETS.get(known if known != "auto" else config["dataset"].replace("-", "_"), "CIFAR-10")
        entry.scores = {f"{dataset} test": float(entry.course.metrics["table_test_accuracy"].iloc[-1])}
    return entry


def _name(alone: list[Entry]) -> None:
    """Name the searches that no table has named."""
    of_course = {id(entry.course): entry for entry in alone if entry.course is not None}
    for title, courses in grouped([entry.course for entry in of_course.values()]).items():
        for entry in (of_course[id(course)] for course in courses):
            entry.column = f"{entry.origin['space'].upper()} on {entry.origin['dataset']}"
            entry.method = title.removeprefix("Search on ").rpartition(": ")[2]
    taken: set[tuple[str, str, int]] = set()
    for entry in alone:  # the same search twice is two searches
        entry.method = entry.method or str(entry.origin["method"])
        if (entry.column, entry.method, entry.seed) in taken:
            entry.method += f" ({entry.folder})"
        taken.add((entry.column, entry.method, entry.seed))


def _read_step(entry: Entry, step: Step, run: Path) -> None:
    config = _config(run)
    origin = config["provenance"]
    entry.commands.append(str(origin["command"]))
    entry.devices.add(str(origin["device"]))
    entry.commits.add(str(origin["commit"]))
    metrics = (_read_search if step == "search" else _read_retraining)(entry, run, config)
    entry.progress[step] = (0 if metrics is None else len(metrics), int(config["epochs"]))
    if metrics is not None:
        entry.figures |= {step: float(metrics["seconds"].sum()), f"{step}_epochs": len(metrics)}
    if not entry.pictures:
        entry.pictures = {path.stem: path.read_bytes() for path in sorted((run / "cells").glob("*.svg"))}


def _read_search(entry: Entry, run: Path, config: dict[str, Any]) -> "pd.DataFrame | None":
    """A search's course, its cell, and its measurements; returns metrics.csv, None before the first epoch."""
    entry.eigenvalues = _measured(entry, run / "hessian.csv", ["epoch", "eigenvalue_1"])
    entry.surface = _measured(entry, run / "landscape.csv", ["x", "y", "loss"])
    if not (run / "metrics.csv").is_file() or not (run / "alphas.npz").is_file():
        return None
    entry.course = load_course(run, config)
    metrics = entry.course.metrics
    skips = metrics.filter(like="skip_connect_").iloc[-1].sum()
    if is_finished(run, "search"):
        cell = load_any(str(run))
        skips = sum(edge.operation == "skip_connect" for kind in cell.kinds for edge in cell.edges(kind))
    entry.figures |= {"skips": float(skips), "memory": float(metrics["peak_memory_mib"].max())}
    if "valid_alignment" in metrics:
        entry.figures["alignment"] = float(metrics["valid_alignment"].iloc[-max(1, len(metrics) // 4) :].mean())
    return metrics


def _measured(entry: Entry, path: Path, columns: list[str]) -> "pd.DataFrame | None":
    """Some columns of a measurement of a search, whose command is in the JSON file beside it."""
    if not path.is_file():
        return None
    entry.measurements.append(str(read_json(path.with_suffix(".json"))["command"]))
    return read_columns(path)[columns]


def _read_retraining(entry: Entry, run: Path, config: dict[str, Any]) -> "pd.DataFrame | None":
    """A retraining's result, where it has one; returns metrics.csv, None before the first epoch."""
    if is_finished(run, "retrain"):
        result = read_json(run / "result.json")
        entry.scores = _scores(result)
        entry.figures["params"] = int(result["params"])
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
