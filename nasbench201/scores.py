"""The accuracies of the cells that searches with several seeds found. Deviations are of samples (n - 1)."""

import itertools
import math
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Grid

from lib import cli
from nasbench201.cells import load_cell
from nasbench201.settings import SearchSettings
from nasbench201.table import column_name, open_table

#: data sets and splits of the papers' tables
COLUMNS = tuple(itertools.product(("cifar10", "cifar100", "imagenet16_120"), ("valid", "test")))


def score(run: Path, settings: SearchSettings) -> dict[str, Any]:
    """The cell of a finished run, and its accuracies in percent under the table's names, such as cifar10_test_200."""
    cell = load_cell(str(run))
    row: dict[str, Any] = {
        "seed": settings.seed,
        "arch": cell.arch,
        "skip_connects": sum(operation == "skip_connect" for operation in cell.operations),
    }
    if settings.table:
        with cli.blaming("--table"):
            table = open_table(Path(settings.table))
            index = table.index(cell)
        for asked in table.available():
            accuracy = table.accuracy(index, *asked)
            if asked[:2] in COLUMNS and not math.isnan(accuracy):
                row[column_name(*asked)] = accuracy
    return row


def shown(cells: list[dict[str, Any]]) -> dict[str, str]:
    """The columns to print, heading -> name: the accuracy after 200 epochs, or after 12 where it is unknown."""
    names = {}
    for dataset, split in COLUMNS:
        for epochs in (200, 12):
            name = column_name(dataset, split, epochs)
            if all(name in cell for cell in cells):
                names[f"{dataset} {split}" + ("" if epochs == 200 else f", {epochs} epochs")] = name
                break
    return names


def mean_and_deviation(values: list[float]) -> str:
    """A text such as 93.76 ± 0.12; only the mean for a single value."""
    mean = statistics.mean(values)
    return f"{mean:.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"


def show(cells: list[dict[str, Any]]) -> None:
    """Print the cells, and the mean over the seeds."""
    names = shown(cells)
    grid = Grid("seed", *names, "skips")
    for cell in cells:
        grid.add_row(str(cell["seed"]), *(f"{cell[name]:.2f}" for name in names.values()), str(cell["skip_connects"]))
    grid.add_section()
    grid.add_row("mean", *(mean_and_deviation([c[name] for c in cells]) for name in (*names.values(), "skip_connects")))
    Console().print(grid)
    for cell in cells:
        print(f"seed {cell['seed']}: {cell['arch']}")
