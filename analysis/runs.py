"""Read the runs of a report: entries of tables (one for each seed) and single runs."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from analysis.compare import group_seeds
from analysis.curves import Course, load_course, looked_up, read_columns
from genotypes import cell_label
from lib import plugins
from lib.files import is_finished, read_json, read_yaml
from nasbench201.cells import TITLES, load_any

if TYPE_CHECKING:
    import pandas as pd

#: subfolders of a run folder that contain no runs
INNER = {"checkpoints", "tensorboard", "cells", "selections", "perturbation"}
Step = Literal["search", "retrain"]
ACCURACY = "test accuracy"


@dataclass
class Entry:
    """A search, its retraining if there is one, and the scores of the derived network.

    Attributes:
        table, column, method: Position in a table. For a single run, names made from its data and settings.
        origin: Flags of the search that select published figures: space, dataset, method.
        scores: Accuracies in percent, and ranks, by name.
        figures: skips, alignment, params, memory (MiB), the seconds of each step (`search`, `retrain`), and the epochs
            of each step (`search_epochs`, `retrain_epochs`).
        progress: step -> (finished epochs, all epochs).
    """

    folder: Path
    table: str
    column: str
    method: str
    seed: int
    origin: dict[str, Any]
    root: Path | None = None  # folder of the table
    note: str = ""  # settings in which the method differs from the rest of the table
    course: Course | None = None
    scores: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    progress: dict[str, tuple[int, int]] = field(default_factory=dict)
    finished: bool = False
    commands: list[str] = field(default_factory=list)
    measurements: list[str] = field(default_factory=list)  # commands that measured the eigenvalues and the surface
    devices: set[str] = field(default_factory=set)
    commits: set[str] = field(default_factory=set)
    eigenvalues: "pd.DataFrame | None" = None  # hessian.csv
    surface: "pd.DataFrame | None" = None  # landscape.csv
    pictures: dict[str, bytes] = field(default_factory=dict)  # kind of cell -> its drawing, as SVG


def load_entries(paths: list[Path]) -> tuple[list[Entry], list[str]]:
    """Return the entries in folders, and a message for each run that could not be read.

    Raises:
        ValueError: The folders contain no readable run.
    """
    units: list[Entry] = []
    alone: list[Entry] = []
    problems: list[str] = []
    for folder in _folders(paths):
        try:
            if (folder / "unit.json").is_file():
                units.append(_read_entry(folder))
            elif not _config(folder).get("seeds"):  # a search with several seeds has a run folder for each seed
                alone.append(_read_single_run(folder))
        except (ValueError, LookupError, OSError) as error:
            problems.append(f"{folder} could not be read: {' '.join(str(error).split())}")
    _name(alone)
    if not units and not alone:
        problem = problems[0] if problems else f"there is no run in {', '.join(map(str, paths))}"
        raise ValueError(f"{problem}; expected run folders of this project")
    return units + alone, problems


def _folders(paths: list[Path]) -> Iterator[Path]:
    """Yield the folders of table entries and single runs, each once."""
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
    config = read_yaml(run / "config.yaml")
    if not isinstance(config, dict) or "provenance" not in config:
        raise ValueError("config.yaml was not written by this project")
    plugins.check_config(config, run)
    return config


def _read_entry(folder: Path) -> Entry:
    """Read an entry of a table. Its folder is TABLE/COLUMN/METHOD/seed-N."""
    about = read_json(folder / "unit.json")
    entry = Entry(
        folder,
        about["table"],
        about["column"],
        about["method"],
        about["seed"],
        about["published_for"],
        folder.resolve().parents[2],
    )
    entry.note = about.get("note", "")
    steps: list[Step] = [step for step in ("search", "retrain") if step in about["steps"]]
    for step in steps:
        if (folder / step / "config.yaml").is_file():
            _read_step(entry, step, folder / step)
    scored = (folder / "score.json").is_file()
    entry.finished = (scored or not about["scored"]) and is_finished(folder / steps[-1], steps[-1])
    if scored:
        score = read_json(folder / "score.json")
        entry.commands.append(score["command"])
        entry.scores = _scores(score)
    return entry


def _read_single_run(folder: Path) -> Entry:
    """Read a single run, which does not belong to a table."""
    config = _config(folder)
    step: Step = "retrain" if "arch" in config else "search"
    origin = {name: config.get(name, "") for name in ("space", "dataset", "method")}
    column = f"{'Retraining' if 'arch' in config else 'Search'} on {config.get('dataset', 'ImageNet')}"
    entry = Entry(folder, "Runs", column, Path(cell_label(config.get("arch", ""))).name, config["seed"], origin)
    _read_step(entry, step, folder)
    entry.finished = is_finished(folder, step)
    # metrics.csv scores the cell of the argmax or threshold rule. The perturbation rule may select another cell.
    known = entry.course is not None and "table_test_accuracy" in entry.course.metrics
    if entry.course is not None and known and config["selection"] != "perturbation":
        score = float(entry.course.metrics["table_test_accuracy"].iloc[-1])
        entry.scores = {f"{looked_up(config)} test": score}
    return entry


def _name(alone: list[Entry]) -> None:
    """Name single searches after the settings in which they differ."""
    entries = {id(entry.course): entry for entry in alone}
    for title, courses in group_seeds([entry.course for entry in alone if entry.course is not None]).items():
        for entry in (entries[id(course)] for course in courses):
            entry.column = f"{entry.origin['space'].upper()} on {entry.origin['dataset']}"
            entry.method = title.removeprefix("Search on ").rpartition(": ")[2]
    taken: set[tuple[str, str, int]] = set()
    for entry in alone:  # equal names get the folder
        entry.method = entry.method or entry.origin["method"]
        if (entry.column, entry.method, entry.seed) in taken:
            entry.method += f" ({entry.folder})"
        taken.add((entry.column, entry.method, entry.seed))


def _read_step(entry: Entry, step: Step, run: Path) -> None:
    """Add the results that a search or a retraining has recorded so far."""
    config = _config(run)
    origin = config["provenance"]
    entry.commands.append(origin["command"])
    entry.devices.add(origin["device"])
    entry.commits.add(origin["commit"])
    metrics = _read_search(entry, run) if step == "search" else _read_retraining(entry, run)
    entry.progress[step] = (0 if metrics is None else len(metrics), config["epochs"])
    if metrics is not None:
        entry.figures |= {step: metrics["seconds"].sum(), f"{step}_epochs": len(metrics)}
    if not entry.pictures:
        entry.pictures = {path.stem: path.read_bytes() for path in sorted((run / "cells").glob("*.svg"))}


def _read_search(entry: Entry, run: Path) -> "pd.DataFrame | None":
    """Add the curves, cell and measurements of a search. Returns metrics.csv, or None before the first epoch."""
    entry.eigenvalues = _measured(entry, run / "hessian.csv")
    entry.surface = _measured(entry, run / "landscape.csv")
    if not (run / "alphas.npz").is_file():
        return None
    entry.course = load_course(run)
    metrics = entry.course.metrics
    skips = metrics.filter(like="skip_connect_").iloc[-1].sum()
    if is_finished(run, "search"):
        cell = load_any(str(run))
        skips = sum(edge.operation == "skip_connect" for kind in cell.kinds for edge in cell.edges(kind))
    entry.figures |= {"skips": skips, "memory": metrics["peak_memory_mib"].max()}
    if "valid_alignment" in metrics:
        entry.figures["alignment"] = metrics["valid_alignment"].iloc[-max(1, len(metrics) // 4) :].mean()
    return metrics


def _measured(entry: Entry, path: Path) -> "pd.DataFrame | None":
    """Read hessian.csv or landscape.csv, and add the command from its JSON file. Returns None if there is no file."""
    if not path.is_file():
        return None
    entry.measurements.append(read_json(path.with_suffix(".json"))["command"])
    return read_columns(path)


def _read_retraining(entry: Entry, run: Path) -> "pd.DataFrame | None":
    """Add the result of a retraining if it is finished. Returns metrics.csv, or None before the first epoch."""
    if is_finished(run, "retrain"):
        result = read_json(run / "result.json")
        entry.scores = _scores(result)
        entry.figures["params"] = result["params"]
    return read_columns(run / "metrics.csv") if (run / "metrics.csv").is_file() else None


def _scores(score: Mapping[str, Any]) -> dict[str, float]:
    """name -> score in percent, or rank, from the JSON output of a test script or of nasbench201/table.py."""
    if "accuracies" not in score:
        names = {"accuracy": ACCURACY, "top5": "top-5 accuracy"}
        return {shown: 100 * score[name] for name, shown in names.items() if name in score}
    found: dict[str, float] = {}
    for split in ("test", "valid"):
        for dataset, shown in TITLES.items():
            rows = [row for row in score["accuracies"] if (row["dataset"], row["split"]) == (dataset, split)]
            rows = [row for row in rows if row["accuracy"] is not None]
            if rows:
                row = max(rows, key=lambda row: row["epochs"])
                name = f"{shown} {split}" + ("" if row["epochs"] == 200 else f", {row['epochs']} epochs")
                found[name] = row["accuracy"]
                if (dataset, split) == ("cifar10", "test") and row["rank"] is not None:
                    found["rank"] = row["rank"]
    return found
