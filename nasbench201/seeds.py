"""Searches with several seeds, one after another, in subfolders of one run."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from lib import cli, options
from lib.cli import InputError, blaming, open_folder, saving
from lib.files import is_finished, write_atomically
from lib.provenance import provenance, write_config
from nasbench201.cells import load_cell
from nasbench201.scores import score, show
from nasbench201.search201 import SearchState201
from nasbench201.settings import SCRIPT, SearchSettings
from search.settings import Resolved
from search.state import open_search
from search.train_search import search


def search_seeds(resolved: Resolved) -> None:
    """Search with each seed in RUN/seed-N and write RUN/results.json. A resumed run skips finished seeds.

    Raises:
        InputError: A folder or the settings cannot be used.
    """
    settings = resolved.settings
    assert isinstance(settings, SearchSettings)
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


def _search_each(resolved: Resolved, singles: Sequence[SearchSettings]) -> None:
    """Run the searches that are not finished yet, and score all."""
    run, command = resolved.run, f"python {resolved.script.path} --resume {shlex.quote(str(resolved.run))}"
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


def _done(folder: Path, settings: SearchSettings) -> bool:
    """Whether the search of one seed is finished.

    Raises:
        InputError: The folder has a search with other settings, or a damaged one.
    """
    if not (folder / "config.yaml").exists():
        return False
    stored, here = (
        asdict(options.load_settings(SCRIPT.settings, SCRIPT.path, folder, "--resume")),
        {"save", "resume", "device", *SCRIPT.movable},
    )
    differing = sorted(name for name, value in asdict(settings).items() if name not in here and stored[name] != value)
    if differing:
        raise InputError(f"--resume: {folder} is of a search with other {', '.join(differing)}; expected the run's")
    if not is_finished(folder, "search"):
        return False
    with blaming("--resume"):
        load_cell(str(folder))
    return True
