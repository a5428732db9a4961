"""Search with several seeds, one after another, in subfolders of one run, and score the cells together.

Standard deviations are those of samples (n - 1).
"""

import itertools
import json
import math
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Grid

from lib import cli, options, plugins
from lib.cli import InputError, blaming, open_folder, saving
from lib.files import is_finished, write_atomically
from lib.provenance import provenance, write_config
from nasbench201.accuracies import SHIPPED, open_table
from nasbench201.cells import TITLES, load_cell
from nasbench201.search201 import SearchState201
from nasbench201.settings import SCRIPT, SearchSettings201
from nasbench201.sources import column_name
from search.command_line import Resolved
from search.state import open_search
from search.train_search import search

#: data sets and splits of the papers' tables
COLUMNS = tuple(itertools.product(("cifar10", "cifar100", "imagenet16_120"), ("valid", "test")))


def search_seeds(resolved: Resolved) -> None:
    """Search with each seed in RUN/seed-N and write RUN/results.json. A resumed run skips finished seeds.

    Raises:
        InputError: A folder or the settings cannot be used.
    """
    settings = resolved.settings
    assert isinstance(settings, SearchSettings201)
    singles = [replace(settings, seed=seed, seeds=None) for seed in settings.seeds or ()]
    if resolved.resumed:
        with open_folder(resolved.run, "--resume", new=False):
            origin = options.stored_settings(resolved.run, "--resume")["provenance"]
            _search_each(replace(resolved, origin=origin), singles)
        return
    # Wrong settings are rejected before the folder is made.
    device = open_search(singles[0], SearchState201).device
    with open_folder(resolved.run, "--save", new=True):
        with blaming("--save"):
            origin = {**provenance(cli.command_line(), str(device)), "settings_from": resolved.sources}
            write_config(resolved.run, asdict(settings), origin)
        _search_each(replace(resolved, origin=origin), singles)


def _search_each(resolved: Resolved, singles: Sequence[SearchSettings201]) -> None:
    """Run the searches that are not finished yet, and score the cells of all."""
    run, script = resolved.run, resolved.script.path
    command = f"python {script} --resume {shlex.quote(str(run))}{plugins.flags()}"
    folders = [run / f"seed-{single.seed}" for single in singles]
    done = [_done(folder, single) for folder, single in zip(folders, singles, strict=True)]
    try:
        for number, (folder, single) in enumerate(zip(folders, singles, strict=True)):
            print(f"seed {single.seed}, {number + 1} of {len(singles)}", flush=True)
            if not done[number]:
                resumed = (folder / "config.yaml").exists()
                search(replace(resolved, settings=single, run=folder, resumed=resumed), SearchState201, whole=run)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(str(stop) or f"resume with: {command}") from None
    cells = [score(folder, single) for folder, single in zip(folders, singles, strict=True)]
    results = {"method": resolved.settings.method, "cells": cells}
    with saving(run, f"resume with: {command}"):
        write_atomically(run / "results.json", json.dumps(results, indent=1) + "\n")
    show(cells)
    print(f"run folder {run}", flush=True)


def _done(folder: Path, settings: SearchSettings201) -> bool:
    """True if the search of one seed is finished.

    Raises:
        InputError: The folder has a search with other settings, or a damaged cell.
    """
    if not (folder / "config.yaml").exists():
        return False
    stored, here = (
        asdict(options.load_settings(SCRIPT.settings, SCRIPT.path, folder, "--resume")),
        {"save", "resume", "device", *SCRIPT.movable},
    )
    differing = sorted(name for name, value in asdict(settings).items() if name not in here and stored[name] != value)
    if differing:
        raise InputError(f"--resume: {folder} has a search with different settings: {', '.join(differing)}")
    if not is_finished(folder, "search"):
        return False
    with blaming("--resume"):
        load_cell(str(folder))
    return True


def score(run: Path, settings: SearchSettings201) -> dict[str, Any]:
    """The cell of a finished run, and its accuracies in percent under the table's names, such as cifar10_test_200."""
    cell = load_cell(str(run))
    row: dict[str, Any] = {
        "seed": settings.seed,
        "arch": cell.arch,
        "skip_connects": sum(operation == "skip_connect" for operation in cell.operations),
    }
    with blaming("--table"):
        table = open_table(settings.table or SHIPPED)
        index = table.index(cell)
    for asked in table.available():
        accuracy = table.accuracy(index, *asked)
        if asked[:2] in COLUMNS and not math.isnan(accuracy):
            row[column_name(*asked)] = accuracy
    return row


def shown(cells: list[dict[str, Any]]) -> dict[str, str]:
    """The figures to print, title -> name: accuracies after 200 epochs, or after 12 if those are unknown."""
    names = {}
    for dataset, split in COLUMNS:
        for epochs in (200, 12):
            name = column_name(dataset, split, epochs)
            if all(name in cell for cell in cells):
                names[f"{TITLES[dataset]} {split} [%]" + ("" if epochs == 200 else f", {epochs} epochs")] = name
                break
    return names


def mean_and_deviation(values: list[float]) -> str:
    """A text such as 93.76 ± 0.12, or only the mean for a single value."""
    mean = statistics.mean(values)
    return f"{mean:.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"


def show(cells: list[dict[str, Any]]) -> None:
    """Print the cells, and the mean over the seeds."""
    grid = Grid("", *(f"seed {cell['seed']}" for cell in cells), "mean")
    for title, name in {**shown(cells), "skip connections": "skip_connects"}.items():
        values = [cell[name] for cell in cells]
        grid.add_row(
            title, *(f"{v:.2f}" if isinstance(v, float) else str(v) for v in values), mean_and_deviation(values)
        )
    Console().print(grid)
    for cell in cells:
        print(f"seed {cell['seed']}: {cell['arch']}")
