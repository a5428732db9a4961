"""Searches with several seeds, and what they found together: mean and standard deviation, as the papers report.

The deviation is that of a sample (n - 1).
"""

import json
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Grid

import cli
from nasbench201.cells import load_cell
from nasbench201.search201 import Search201
from nasbench201.table import open_table
from search.bilevel import make_fabric
from search.loop import search
from search.settings import Resolved
from utils import provenance, write_atomically, write_config

#: the columns of the papers' tables
COLUMNS = tuple(
    (dataset, split) for dataset in ("cifar10", "cifar100", "imagenet16_120") for split in ("valid", "test")
)


def search_seeds(resolved: Resolved) -> None:
    """Search with each seed, in RUN/seed-N, and leave RUN/results.json; goes on with what is there.

    Raises:
        InputError: a folder or the settings cannot be used.
    """
    settings, run = resolved.settings, resolved.run
    if not resolved.resumed:
        device = str(make_fabric(settings.device, settings.precision).device)
        cli.new_folder(run, "--save")
        write_config(run, {**asdict(settings), "save": str(run)}, provenance(cli.command_line(), device))
    for number, seed in enumerate(settings.seeds, start=1):
        folder = run / f"seed-{seed}"
        print(f"seed {seed}, {number} of {len(settings.seeds)}", flush=True)
        if not (folder / "genotype.json").exists():
            own = replace(settings, seed=seed, seeds=None)
            resumed = (folder / "config.yaml").exists()
            search(replace(resolved, settings=own, run=folder, resumed=resumed), Search201, whole=run)
    results = {
        "method": settings.method,
        "cells": [score(run / f"seed-{seed}", seed, settings.table) for seed in settings.seeds],
    }
    write_atomically(run / "results.json", json.dumps(results, indent=1) + "\n")
    show(results["cells"])
    print(f"run folder {run}", flush=True)


def score(run: Path, seed: int, table_path: str) -> dict[str, Any]:
    """The cell of a finished run, and what the table knows of it, in percent: of each column the longer training's."""
    cell = load_cell(str(run))
    row: dict[str, Any] = {
        "seed": seed,
        "arch": cell.arch,
        "skip_connects": sum(operation == "skip_connect" for operation in cell.operations),
    }
    if table_path:
        with cli.blaming("--table"):
            table = open_table(Path(table_path))
            index = table.index(cell)
        for dataset, split in COLUMNS:
            for epochs in (12, 200):
                if f"{dataset}_{split}_{epochs}" in table.columns:
                    row[f"{dataset}_{split}"] = table.accuracy(index, dataset, split, epochs)
    return row


def mean_and_deviation(values: list[float]) -> str:
    """As the papers print it: 93.76 ± 0.12; the mean alone of a single value."""
    mean = statistics.mean(values)
    return f"{mean:.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"


def show(cells: list[dict[str, Any]]) -> None:
    """Print the cells, and the mean over the seeds."""
    known = [f"{dataset}_{split}" for dataset, split in COLUMNS if f"{dataset}_{split}" in cells[0]]
    grid = Grid("seed", *known, "skips", "cell")
    for cell in cells:
        grid.add_row(
            str(cell["seed"]), *(f"{cell[name]:.2f}" for name in known), str(cell["skip_connects"]), cell["arch"]
        )
    grid.add_section()
    skips = mean_and_deviation([cell["skip_connects"] for cell in cells])
    grid.add_row("mean", *(mean_and_deviation([cell[name] for cell in cells]) for name in known), skips, "")
    console = Console(width=None if Console().is_terminal else 200)
    console.print(grid)
